"""What both trainers agree on, in plain Python and NumPy. No arithmetic of training lives here."""

from importlib import metadata

try:
    __version__ = metadata.version("twinstep")
except metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"
