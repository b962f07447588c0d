"""Formats in which a model can be kept, each read into and written from one `Snapshot`."""
