"""The train step compiled for machines that are not there: memory, collectives and a roofline."""
