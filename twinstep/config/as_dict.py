"""A configuration as plain JSON values, and back."""

import dataclasses
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from twinstep.config.data import CorpusConfig, TabularConfig
from twinstep.config.models import MODELS
from twinstep.config.optimizer import OptimizerConfig
from twinstep.config.run import Config, DeviceConfig, OutputConfig, TrainConfig
from twinstep.errors import UserError


def to_dict(config: Config) -> dict[str, Any]:
    """A config as plain JSON values; `model_name` says which model's fields the rest holds."""
    return {"model_name": config.model_name, **dataclasses.asdict(config)}


MAY_BE_OLDER = ("devices", "output")  # these change no number: a run made before a field was there takes its default
# Fields of the other parts that came later, each with the value that means what runs did before.
ADDED: dict[str, dict[str, Any]] = {
    "data": {"text_key": "text", "special_tokens": "none", "chat": False},
    "train": {"init_from": None},
}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises UserError for a missing, unknown or out-of-range field.

    A field that is missing in the parts MAY_BE_OLDER, or is among ADDED, has its default.
    """
    values = dict(values)
    name = values.pop("model_name", None)
    if name not in MODELS:
        raise UserError(f"config names the model {name!r}; known are {', '.join(MODELS)}")
    kinds: dict[str, Any] = {
        "model": MODELS[name],
        "data": CorpusConfig if name in ("gpt", "embedding") else TabularConfig,
        "optimizer": OptimizerConfig,
        "train": TrainConfig,
        "devices": DeviceConfig,
        "output": OutputConfig,
    }
    if set(values) != set(kinds):
        raise UserError(f"config holds the parts {sorted(values)}; expected {sorted(kinds)}")
    parts = {}
    for part, kind in kinds.items():
        names = {f.name for f in dataclasses.fields(kind)}
        later = dataclasses.asdict(kind()) if part in MAY_BE_OLDER else ADDED.get(part, {})
        if isinstance(values[part], dict):
            values[part] = {name: value for name, value in later.items() if name in names} | values[part]
        if not isinstance(values[part], dict) or set(values[part]) != names:
            wrong = sorted(set(values[part]) ^ names) if isinstance(values[part], dict) else values[part]
            raise UserError(f"config part {part!r} has missing or unknown fields: {wrong}")
        for field_name, hint in get_type_hints(kind).items():
            if field_name in names and not _fits(values[part][field_name], hint):
                raise UserError(f"config has {field_name} {values[part][field_name]!r}; it cannot be that")
        parts[part] = kind(**values[part])
    return Config(**parts)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value belongs to a field's type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
