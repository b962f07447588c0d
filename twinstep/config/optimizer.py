"""Settings of the optimizers and of their schedules."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from twinstep.config.bounds import BELOW_ONE, COUNT, FRACTION, NATURAL, POSITIVE, Bound, check_bounds
from twinstep.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizers of the several kinds of parameters, their learning rates and schedules."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: matrices by --matrix-optimizer, all else by AdamW; adamw: one AdamW at --adamw-lr for everything."""
    matrix_optimizer: Literal["muon", "sgd"] = "muon"
    """Optimizer of the matrices under --optimizer muon."""
    matrix_lr: float = 0.02
    """Peak learning rate of the matrices."""
    embedding_lr: float = 0.2
    """Peak learning rate of the token embedding, at width 768; scaled by (width/768)^-1/2 in gpt."""
    head_lr: float = 0.004
    """Peak learning rate of the output head of gpt, at width 768; scaled likewise."""
    adamw_lr: float = 0.01
    """Peak learning rate of biases and BatchNorm, and of everything under --optimizer adamw."""
    beta1: float = 0.8
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-10
    """AdamW's eps, added to the root of the bias-corrected second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW's parameters, except biases and BatchNorm; multiplied by the learning rate."""
    matrix_weight_decay: float = 0.0
    """Decoupled weight decay of the matrices; multiplied by the learning rate."""
    decay_schedule: Literal["constant", "linear"] = "constant"
    """linear: both weight decays shrink linearly to zero over the run."""
    momentum_start: float = 0.85
    """Muon's momentum at step 0."""
    momentum_end: float = 0.95
    """Muon's momentum from --momentum-steps on."""
    momentum_steps: int = 300
    """Steps over which Muon's momentum grows linearly."""
    newton_schulz_steps: int = 5
    """Iterations of Muon's orthogonalization."""
    newton_schulz_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Compute dtype of the orthogonalization; auto: float64 in float64 runs, bfloat16 on accelerators, else float32."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 switches clipping off."""
    warmup_fraction: float = 0.0
    """Fraction of the steps over which the learning rate warms up linearly, from 1/n of its peak to the peak."""
    warmdown_fraction: float = 0.2
    """Fraction of the steps, at the end, over which the learning rate decays linearly."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end of the warm-down, as a fraction of the peak."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "matrix_lr": POSITIVE,
        "embedding_lr": POSITIVE,
        "head_lr": POSITIVE,
        "adamw_lr": POSITIVE,
        "beta1": BELOW_ONE,
        "beta2": BELOW_ONE,
        "eps": POSITIVE,
        "weight_decay": NATURAL,
        "matrix_weight_decay": NATURAL,
        "momentum_start": BELOW_ONE,
        "momentum_end": BELOW_ONE,
        "momentum_steps": COUNT,
        "newton_schulz_steps": Bound(1, 100),
        "clip_norm": NATURAL,
        "warmup_fraction": FRACTION,
        "warmdown_fraction": FRACTION,
        "final_lr_fraction": FRACTION,
    }

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.warmup_fraction + self.warmdown_fraction > 1:
            raise UserError(
                f"--warmup-fraction {self.warmup_fraction} and --warmdown-fraction {self.warmdown_fraction} "
                "add to more than 1; shorten one"
            )
