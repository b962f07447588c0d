"""Scripts to run and to copy from: `python -m examples.NAME`."""

import sys

from twinstep.extras import excepthook

sys.excepthook = excepthook
