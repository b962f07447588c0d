"""Whether a user's own file or folder stands in the way of one of our packages, by whose name it is imported instead.

Each package runs this file by its path (its name could be the shadowed one) before it imports anything of ours.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def check_not_shadowed(package: str, needed: tuple[str, ...]) -> None:
    """Raises ImportError if a package that is needed would not come from beside this one, as it was installed.

    package: the `__file__` of the one that asks. Under `python -m` the same line is an error of the command, exit 2.
    """
    for name in needed:
        ours = Path(package).resolve().parents[1] / name
        try:
            spec = find_spec(name)
        except ImportError:
            spec = None
        if spec is None:  # Python says so itself, when the package is imported
            continue
        found = spec.origin or next(iter(spec.submodule_search_locations or []), "")
        theirs = Path(found).resolve()
        if theirs not in (ours, ours / "__init__.py"):
            line = (
                f"{theirs.parent if theirs.name == '__init__.py' else theirs} is imported in place of our package "
                f"{name} ({ours}); run from another folder, rename it, or keep Python from looking there: python -P"
            )
            if sys.argv[0] == "-m":  # until Python has found the module that it was told to run
                print(f"error: {line}", file=sys.stderr)
                raise SystemExit(2)
            raise ImportError(line)
