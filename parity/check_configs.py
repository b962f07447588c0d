"""What is checked when a model's name is given: configurations in which no part of the step is idle.

Weight decay, clipping, warm-up, warm-down and accumulation are on, no matrix is square that need not be, key/value
heads are fewer than query heads, some targets are masked, dropout masks are shared: a part that does nothing would
agree with anything.
"""

from dataclasses import replace

from twinstep.config import (
    MODELS,
    Config,
    CorpusConfig,
    Dtype,
    EmbeddingConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    TabularConfig,
    TrainConfig,
)
from twinstep.errors import UserError
from twinstep.presets import PRESETS

# The clip norm lies below the gradients' norm in the first steps.
BUSY = OptimizerConfig(
    weight_decay=0.1,
    matrix_weight_decay=0.1,
    decay_schedule="linear",
    warmup_fraction=0.2,
    warmdown_fraction=0.4,
    final_lr_fraction=0.1,
    clip_norm=0.1,
    momentum_steps=8,
)

SUBJECTS: dict[str, Config] = {
    "gpt": replace(
        PRESETS["parity"],
        optimizer=replace(
            PRESETS["parity"].optimizer, decay_schedule="linear", momentum_steps=8, warmdown_fraction=0.4
        ),
    ),
    "linear": Config(
        model=LinearConfig(),
        data=TabularConfig(),
        optimizer=BUSY,
        train=TrainConfig(steps=20, batch_size=32, accumulation=2),
    ),
    "embedding": Config(
        model=EmbeddingConfig(d_model=24),
        data=CorpusConfig(sequence_len=16, masked_targets=0.2),
        optimizer=BUSY,
        train=TrainConfig(steps=20, batch_size=8, accumulation=2),
    ),
    "mlp": Config(
        model=MLPConfig(hidden=48, shared_dropout=True),
        data=TabularConfig(),
        optimizer=BUSY,
        train=TrainConfig(steps=20, batch_size=32, accumulation=2),
    ),
}

LEAST_STEPS = 3  # from the native start, the zero projections pass on no gradient before the third step


def subject(model: str, dtype: Dtype, steps: int, seed: int) -> Config:
    """The configuration that `parity check MODEL` checks. Raises UserError for an unknown model or too few steps."""
    if model not in MODELS:
        raise UserError(f"unknown model {model!r}; choose one of {', '.join(MODELS)}")
    if steps < LEAST_STEPS:
        raise UserError(f"--steps is {steps}; a check needs at least {LEAST_STEPS}")
    config = SUBJECTS[model]
    return replace(config, train=replace(config.train, dtype=dtype, steps=steps, seed=seed, eval_batches=2))
