"""How far a run has come: what is due at a step, and the facts that a checkpoint holds beside its arrays.

The facts are the JSON part of a checkpoint, the same in both frameworks:

config                           the parts of the configuration that fix every number
best_val_loss, best_step         the best evaluation so far
evaluations_without_improvement  the number of evaluations since then, for early stopping
extended_to, extended_from       where --extend-to was used: the number of steps now, and those before in their order
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twinstep.config import Config, OptimizerConfig, to_dict
from twinstep.config.as_dict import ADDED
from twinstep.errors import UserError
from twinstep.run_dir import damaged

Facts = dict[str, Any]

# Paths may change; what is there is checked by its hash.
PLACES = ("data", "cache_dir", "init_from")
HORIZON = ("steps", "target_flops", "tokens_per_parameter")  # what --extend-to changes


def due(step: int, every: int) -> bool:
    """True at multiples of `every`; 0 means never."""
    return every > 0 and step % every == 0


def evaluation_due(config: Config, step: int) -> bool:
    """At multiples of --eval-every, or half way where that is 0; and always after the last step."""
    every, steps = config.train.eval_every, config.train.steps
    return step == steps or due(step, every) or (every == 0 and step == steps // 2)


def finished(facts: Facts, config: Config, step: int) -> bool:
    """Whether a run is over after `step`: at its last step, or out of patience."""
    patience = config.train.patience
    return step >= config.train.steps or 0 < patience <= facts["evaluations_without_improvement"]


def first_facts(config: Config) -> Facts:
    """The facts of a run before its first evaluation."""
    return {
        "config": numbers(config),
        "best_val_loss": None,
        "best_step": None,
        "evaluations_without_improvement": 0,
    }


def numbers(config: Config) -> dict[str, Any]:
    """The part of a configuration that decides what is computed, as JSON values; without defaults of fields ADDED."""
    values = to_dict(config)
    parts = {
        part: {name: value for name, value in values[part].items() if name not in PLACES}
        for part in ("model", "data", "optimizer", "train")
    }
    for part, later in ADDED.items():
        for name, default in later.items():
            if name in parts[part] and parts[part][name] == default:
                del parts[part][name]
    return {"model_name": values["model_name"], **parts}


def check_config(facts: Facts, config: Config, run: Path) -> None:
    """Raises UserError if the checkpoint that holds these facts was made under another configuration."""
    theirs, ours = facts.get("config"), numbers(config)
    if isinstance(theirs, dict) and extends(config, facts):
        theirs = {**theirs, "train": {**theirs["train"], **{name: ours["train"][name] for name in HORIZON}}}
    if theirs == ours:
        return
    message = f"{run} holds a checkpoint of another run"
    if isinstance(theirs, dict):
        for part in ("model", "data", "optimizer", "train"):
            for name, value in ours[part].items():
                other = (theirs.get(part) or {}).get(name)
                if other != value:
                    message = f"{run}/config.json has {name} {value}, but its checkpoint was made with {other}"
    raise UserError(f"{message}; restore what was there, or start a new run in another --out-dir")


def extends(config: Config, facts: Facts) -> bool:
    """Whether a run was given another horizon by --extend-to since the checkpoint with these facts."""
    return config.output.extend_to not in (None, facts.get("extended_to"))


def take_up_extension(
    facts: Facts, config: Config, step: int, lr_multiplier: Callable[[OptimizerConfig, int, Any], Any]
) -> str:
    """Update the facts of a run that is extended at `step`, and say what happens; nothing, and "", for any other.

    lr_multiplier: the framework's own, from its `schedule.py`. Evaluations without improvement are counted anew: the
    learning rate is another.
    """
    if not extends(config, facts):
        return ""
    before, after = facts["config"]["train"]["steps"], config.train.steps
    facts.update(
        config=numbers(config),
        evaluations_without_improvement=0,
        extended_to=after,
        extended_from=[*facts.get("extended_from", []), before],
    )
    last, following = (
        float(lr_multiplier(config.optimizer, steps, index))
        for steps, index in ((before, max(step - 1, 0)), (after, step))
    )
    return (
        f"extended from {before} to {after} steps: the schedules are those of {after} steps from here on; the learning "
        f"rate goes from {last:.2g} to {following:.2g} of its peak"
    )


def note_evaluation(facts: Facts, step: int, val_loss: float) -> bool:
    """Update the facts after an evaluation; True if it is the best so far."""
    improved = facts["best_val_loss"] is None or val_loss < facts["best_val_loss"]
    if improved:
        facts.update(best_val_loss=val_loss, best_step=step, evaluations_without_improvement=0)
    else:
        facts["evaluations_without_improvement"] += 1
    return improved


def seal(facts: Facts) -> Facts:
    """The facts with their own SHA-256."""
    return {**facts, "sha256": _digest(facts)}


def unseal(sealed: Any) -> Facts:
    """The inverse of `seal`. Raises ValueError if they are not what was sealed."""
    if not isinstance(sealed, dict) or "sha256" not in sealed:
        raise ValueError("the facts have no checksum")
    facts = {name: value for name, value in sealed.items() if name != "sha256"}
    if sealed["sha256"] != _digest(facts):
        raise ValueError("the facts are not those that were saved (their SHA-256 differs)")
    return facts


def check_sums(facts: Facts, found: Mapping[str, int | str], run: Path, step: int) -> None:
    """Raises UserError naming the first array or file of a checkpoint whose checksum is not in its facts."""
    for name, checksum in found.items():
        if facts.get("checksums", {}).get(name) != checksum:
            raise damaged(run, step, f"{name} is not what was saved (its checksum differs)")


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
