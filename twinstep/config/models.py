"""The four models' sizes and settings."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from twinstep.config.bounds import BELOW_ONE, COUNT, FRACTION, POSITIVE, Bound, check_bounds
from twinstep.errors import UserError

Dtype = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class GPTConfig:
    """nanochat's decoder-only transformer of November 2025 (karpathy/nanochat, nanochat/gpt.py).

    Upstream's commit: 16788eed3cc3a79a94fa5bb852db722f79852cb7.
    """

    depth: int = 4
    """Number of blocks."""
    d_model: int | None = None
    """Width of the residual stream in channels; 64 x depth when left out, as upstream."""
    head_dim: int = 128
    """Channels per attention head; even, and a divisor of the width."""
    kv_heads: int | None = None
    """Key/value heads, a divisor of the query heads; as many as query heads when left out."""
    vocab_size: int | None = None
    """Size of the vocabulary in tokens; the tokenizer's when left out."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rotary_dtype: Dtype = "float32"
    """Dtype to which the rotary table is rounded; upstream always uses bfloat16."""
    softcap: float = 15.0
    """Logits are softcap * tanh(logits / softcap)."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "depth": Bound(1, 1024),
        "d_model": COUNT,
        "head_dim": Bound(2, 2**31 - 1),
        "kv_heads": COUNT,
        "vocab_size": Bound(2, 2**31 - 1),
        "rope_theta": POSITIVE,
        "softcap": POSITIVE,
    }

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.head_dim % 2:
            raise UserError(f"--head-dim is {self.head_dim}; rotary embedding needs an even number")
        if self.width % self.head_dim:
            raise UserError(
                f"--head-dim {self.head_dim} does not divide the width {self.width}; "
                f"pass --d-model {-(-self.width // self.head_dim) * self.head_dim} or another --head-dim"
            )
        if self.heads % self.key_value_heads:
            raise UserError(f"--kv-heads {self.key_value_heads} does not divide the {self.heads} query heads")

    @property
    def width(self) -> int:
        """Channels of the residual stream (D)."""
        return 64 * self.depth if self.d_model is None else self.d_model

    @property
    def heads(self) -> int:
        """Query heads (H)."""
        return self.width // self.head_dim

    @property
    def key_value_heads(self) -> int:
        """Key/value heads (K)."""
        return self.heads if self.kv_heads is None else self.kv_heads


@dataclass(frozen=True)
class LinearConfig:
    """One linear layer: a softmax over the classes, or one logit for two of them."""

    head: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: k logits and cross-entropy; sigmoid: one logit and binary cross-entropy, for two classes."""
    features: int | None = None
    """Input features; the data set's when left out."""
    classes: int | None = None
    """Classes; the data set's when left out."""

    BOUNDS: ClassVar[dict[str, Bound]] = {"features": COUNT, "classes": Bound(2, 2**31 - 1)}

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.head == "sigmoid" and self.classes not in (None, 2):
            raise UserError(f"--head sigmoid separates 2 classes, the data has {self.classes}; pass --head softmax")

    @property
    def logits(self) -> int:
        """Number of outputs of the layer."""
        if self.classes is None:
            raise UserError("the number of classes is not known yet; it comes from the data set")
        return 1 if self.head == "sigmoid" else self.classes


@dataclass(frozen=True)
class EmbeddingConfig:
    """Token embedding, then one linear layer per position: a bigram model."""

    d_model: int = 32
    """Channels of the embedding."""
    vocab_size: int | None = None
    """Size of the vocabulary in tokens; the tokenizer's when left out."""

    BOUNDS: ClassVar[dict[str, Bound]] = {"d_model": COUNT, "vocab_size": Bound(2, 2**31 - 1)}

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class MLPConfig:
    """Linear, BatchNorm, ReLU, Dropout, Linear: the model whose two modes differ."""

    hidden: int = 128
    """Hidden units."""
    dropout: float = 0.2
    """Share of hidden units dropped in training."""
    batch_norm_momentum: float = 0.1
    """Weight of the new batch in BatchNorm's running statistics, in torch's sense."""
    batch_norm_eps: float = 1e-5
    """Added to BatchNorm's variance."""
    shared_dropout: bool = False
    """Draw dropout masks with NumPy, keyed by seed, step and layer, so that both frameworks drop the same units."""
    features: int | None = None
    """Input features; the data set's when left out."""
    classes: int | None = None
    """Classes; the data set's when left out."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "hidden": COUNT,
        "dropout": BELOW_ONE,
        "batch_norm_momentum": FRACTION,
        "batch_norm_eps": POSITIVE,
        "features": COUNT,
        "classes": Bound(2, 2**31 - 1),
    }

    def __post_init__(self) -> None:
        check_bounds(self)


ModelConfig = GPTConfig | LinearConfig | EmbeddingConfig | MLPConfig

MODELS: dict[str, type[ModelConfig]] = {
    "gpt": GPTConfig,
    "linear": LinearConfig,
    "embedding": EmbeddingConfig,
    "mlp": MLPConfig,
}
