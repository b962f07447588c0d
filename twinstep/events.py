"""When the loop does what beside training: plain arithmetic on step numbers, the same for both trainers."""

from twinstep.config import Config


def due(step: int, every: int) -> bool:
    """True at multiples of `every`; 0 means never."""
    return every > 0 and step % every == 0


def evaluation_due(config: Config, step: int) -> bool:
    """At multiples of --eval-every, or half way where that is 0; and always after the last step."""
    every, steps = config.train.eval_every, config.train.steps
    return step == steps or due(step, every) or (every == 0 and step == steps // 2)
