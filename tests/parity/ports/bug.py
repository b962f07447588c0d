"""A bug to plant into a port."""

from typing import Any, NamedTuple


class Bug(NamedTuple):
    """One replacement of a function or a constant of the port's module."""

    what: str
    name: str  # what is replaced in the module
    wrong: Any
    where: str  # torch's module at which it first shows, as a regular expression; "output" for none before it
