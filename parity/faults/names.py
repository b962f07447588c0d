"""The faults' names, read off the sources, so that a wrong one is refused without loading jax and torch."""

import ast
from pathlib import Path

from twinstep.errors import UserError


def fault_names(model: str | None) -> list[str]:
    """The first word of every `Fault(name, model, ...)` of this folder; model: only those of one."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Fault":
                name, of_model = (ast.literal_eval(argument) for argument in node.args[:2])
                found += [name] if model in (None, of_model) else []
    return found


def check_names(model: str | None, only: str | None) -> None:
    """Raises UserError with the names there are, where `only` is none of the model's faults."""
    known = fault_names(model)
    if only is None or only in known:
        return
    near = [name for name in known if only.lower() in name.lower()]
    hint = f"perhaps {near[0]!r} was meant" if near else f"choose from {', '.join(known)}"
    raise UserError(f"no fault{f' of {model}' if model else ''} is called {only!r}; {hint}")
