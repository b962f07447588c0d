"""`python -m parity`: see `parity.cli`."""

import sys

from parity.cli import main
from twinstep.errors import run_command

sys.exit(run_command(main))
