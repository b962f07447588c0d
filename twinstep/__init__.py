"""What both trainers agree on, in plain Python and NumPy. No arithmetic of training lives here."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("twinstep")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
