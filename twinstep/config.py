"""Configuration: frozen dataclasses, validated where they are made, one preset per model.

Every field is a command-line flag of the same name (`sequence_len` is `--sequence-len`); the string under a
field is its help text and states its unit. `BOUNDS` holds the range of every numeric field, so that the check,
its message and the tests read one table.
"""

import dataclasses
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from twinstep.errors import UserError

Dtype = Literal["float32", "bfloat16", "float64"]


class Bound(NamedTuple):
    """A numeric range; `open_low` and `open_high` leave out the end itself."""

    low: float
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range; infinity and NaN never do."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and value != float("inf")  # NaN fails both comparisons

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {self.low}"
        if self.high == float("inf"):
            return low
        return f"{low} and {'less than' if self.open_high else 'at most'} {self.high}"


POSITIVE = Bound(0, open_low=True)
COUNT = Bound(1, 2**31 - 1)  # steps are counted in 32 bits
NATURAL = Bound(0)
FRACTION = Bound(0, 1)
BELOW_ONE = Bound(0, 1, open_high=True)


def flag(name: str) -> str:
    """The command-line flag of a field: `batch_size` is --batch-size."""
    return "--" + name.replace("_", "-")


def check_bounds(config: Any) -> None:
    """Raises UserError for the first numeric field of a config outside its bound; None means 'not given'."""
    for name, bound in config.BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not bound.holds(value):
            raise UserError(f"{flag(name)} is {value}; it must be {bound}")


@dataclass(frozen=True)
class GPTConfig:
    """nanochat's decoder-only transformer of November 2025 (karpathy/nanochat, nanochat/gpt.py)."""

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
    """Type to which the rotary table is rounded; upstream always takes bfloat16."""
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
    """One linear layer: a softmax over k classes, or one logit for two."""

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


@dataclass(frozen=True)
class CorpusConfig:
    """Text for the language models."""

    data: str | None = None
    """File or folder of .txt .md .py .jsonl .parquet; the Python standard library's own source when left out."""
    sequence_len: int = 256
    """Length of a training sequence in tokens."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """bytes: one token per UTF-8 byte; bpe: byte-level BPE trained on the training files and kept in the run."""
    bpe_vocab_size: int = 4096
    """Tokens of the BPE vocabulary, the 256 bytes and the special mark included."""
    masked_targets: float = 0.0
    """Share of targets set to -1 (ignored), drawn by seed and batch number; for parity and tests."""
    cache_dir: str | None = None
    """Folder for tokenized corpora; $XDG_CACHE_HOME/twinstep or ~/.cache/twinstep when left out."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "sequence_len": COUNT,
        "bpe_vocab_size": Bound(257, 2**24),
        "masked_targets": BELOW_ONE,
    }

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class TabularConfig:
    """scikit-learn's small data sets for the classifiers."""

    dataset: Literal["digits", "breast_cancer"] = "digits"
    """digits: 1,797 images of 8 x 8, 10 classes; breast_cancer: 569 samples of 30 features, 2 classes."""

    BOUNDS: ClassVar[dict[str, Bound]] = {}


@dataclass(frozen=True)
class OptimizerConfig:
    """Several optimizers for several kinds of parameters, their rates and their schedules."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: matrices by --matrix-optimizer, all else by AdamW; adamw: one AdamW at --adamw-lr for everything."""
    matrix_optimizer: Literal["muon", "sgd"] = "muon"
    """What the matrices get under --optimizer muon."""
    matrix_lr: float = 0.02
    """Peak rate of the matrices."""
    embedding_lr: float = 0.2
    """Peak rate of the token embedding, at width 768; scaled by (width/768)^-1/2 in gpt."""
    head_lr: float = 0.004
    """Peak rate of the output head of gpt, at width 768; scaled likewise."""
    adamw_lr: float = 0.01
    """Peak rate of biases and BatchNorm, and of everything under --optimizer adamw."""
    beta1: float = 0.8
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-10
    """AdamW's eps, added to the root of the bias-corrected second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of what AdamW trains, but for biases and BatchNorm; multiplied by the rate."""
    matrix_weight_decay: float = 0.0
    """Decoupled decay of the matrices; multiplied by the rate."""
    decay_schedule: Literal["constant", "linear"] = "constant"
    """linear: both decays shrink linearly to zero over the run."""
    momentum_start: float = 0.85
    """Muon's momentum at step 0."""
    momentum_end: float = 0.95
    """Muon's momentum from --momentum-steps on."""
    momentum_steps: int = 300
    """Steps over which Muon's momentum grows linearly."""
    newton_schulz_steps: int = 5
    """Iterations of Muon's orthogonalization."""
    newton_schulz_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Type of the orthogonalization; auto: float64 in float64 runs, bfloat16 on accelerators, else float32."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 switches clipping off."""
    warmup_fraction: float = 0.0
    """Share of the steps in which the rate grows linearly from 1/n to 1."""
    warmdown_fraction: float = 0.2
    """Share of the steps, at the end, in which the rate shrinks linearly."""
    final_lr_fraction: float = 0.0
    """Where the warm-down ends, as a share of the peak rate."""

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


@dataclass(frozen=True)
class TrainConfig:
    """How long, on how much at once, in which arithmetic."""

    steps: int = 200
    """Optimizer steps; --target-flops or --tokens-per-parameter set it otherwise."""
    target_flops: float | None = None
    """Horizon as training FLOPs, counted as upstream counts them."""
    tokens_per_parameter: float | None = None
    """Horizon as training tokens per parameter."""
    batch_size: int = 16
    """Examples (sequences) per optimizer step, over all devices and micro-steps."""
    batch_tokens: int | None = None
    """Tokens per optimizer step, a multiple of --sequence-len; sets --batch-size."""
    accumulation: int = 1
    """Micro-steps per optimizer step; the gradient is the mean over all unmasked targets of the step."""
    seed: int = 0
    """Seed of initial weights, data order, dropout and samples."""
    init: Literal["native", "nonzero"] = "native"
    """native: as upstream, head and output projections at zero; nonzero: these too are random."""
    dtype: Dtype = "float32"
    """Type of the computation; parameters and optimizer state stay float32 (float64 in float64 runs)."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 matrix products on accelerators: default may use TF32 or bfloat16 passes."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, more work."""
    eval_every: int = 0
    """Steps between evaluations; always one before and one after; 0: only those and one half way."""
    eval_batches: int = 8
    """Batches per evaluation, evenly spaced over the validation set; 0: all of it."""
    patience: int = 0
    """Evaluations without improvement after which training stops early; 0: never."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "steps": COUNT,
        "target_flops": POSITIVE,
        "tokens_per_parameter": POSITIVE,
        "batch_size": COUNT,
        "batch_tokens": COUNT,
        "accumulation": COUNT,
        "seed": Bound(0, 2**32 - 1),
        "eval_every": NATURAL,
        "eval_batches": NATURAL,
        "patience": NATURAL,
    }

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.target_flops is not None and self.tokens_per_parameter is not None:
            raise UserError("--target-flops and --tokens-per-parameter both set the horizon; pass one of them")


@dataclass(frozen=True)
class DeviceConfig:
    """Where it runs. Nothing here changes what is computed, so all of it may differ when a run is resumed."""

    parallel: Literal["auto", "jit", "pmap", "fsdp"] = "auto"
    """jit: one device; pmap: data parallel; fsdp: parameters and optimizer state divided too."""
    coordinator: str | None = None
    """host:port of process 0 of a run over several hosts; detected on TPU pods and SLURM."""
    num_processes: int | None = None
    """Processes of a run over several hosts."""
    process_id: int | None = None
    """This process's number, from 0."""

    BOUNDS: ClassVar[dict[str, Bound]] = {"num_processes": COUNT, "process_id": NATURAL}

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.num_processes is not None and (self.process_id or 0) >= self.num_processes:
            raise UserError(
                f"--process-id is {self.process_id}; with --num-processes {self.num_processes} "
                f"it must be at most {self.num_processes - 1}"
            )


@dataclass(frozen=True)
class OutputConfig:
    """What is written and shown. May differ when a run is resumed."""

    out_dir: str | None = None
    """Run directory; the first free runs/jax-MODEL-N or runs/torch-MODEL-N when left out."""
    resume: bool = False
    """Continue the run in --out-dir (the newest one when left out) from its newest whole checkpoint."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = 3
    """Checkpoints kept beside the best one."""
    sample_every: int = 0
    """Steps between samples of text; 0: only at the end."""
    sample_tokens: int = 200
    """Length of a sample in tokens."""
    tensorboard: bool = False
    """Write TensorBoard event files too (extra: tensorboard)."""
    wandb: bool = False
    """Log to Weights & Biases too (extra: wandb; WANDB_MODE=offline keeps it on this machine)."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "log_every": COUNT,
        "save_every": NATURAL,
        "keep_last": COUNT,
        "sample_every": NATURAL,
        "sample_tokens": COUNT,
    }

    def __post_init__(self) -> None:
        check_bounds(self)


ModelConfig = GPTConfig | LinearConfig | EmbeddingConfig | MLPConfig
DataConfig = CorpusConfig | TabularConfig

MODELS: dict[str, type[ModelConfig]] = {
    "gpt": GPTConfig,
    "linear": LinearConfig,
    "embedding": EmbeddingConfig,
    "mlp": MLPConfig,
}


@dataclass(frozen=True)
class Config:
    """A whole run. `train`, `optimizer`, `model` and `data` fix every number it computes."""

    model: ModelConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        tokens = self.train.batch_tokens
        if isinstance(self.data, CorpusConfig) and tokens is not None and tokens % self.data.sequence_len:
            raise UserError(f"--batch-tokens {tokens} is not a multiple of --sequence-len {self.data.sequence_len}")
        if self.batch_size % self.train.accumulation:
            raise UserError(
                f"--batch-size {self.batch_size} is not divisible by --accumulation {self.train.accumulation}"
            )
        if isinstance(self.model, MLPConfig) and self.batch_size == self.train.accumulation:
            raise UserError(
                f"--batch-size {self.batch_size} / --accumulation {self.train.accumulation} = 1 example; mlp's "
                "BatchNorm needs 2 or more in a micro-step, raise --batch-size"
            )

    @property
    def model_name(self) -> str:
        """The model's name on the command line."""
        return next(name for name, kind in MODELS.items() if type(self.model) is kind)

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step."""
        if self.train.batch_tokens is not None and isinstance(self.data, CorpusConfig):
            return self.train.batch_tokens // self.data.sequence_len
        return self.train.batch_size

    @property
    def param_dtype(self) -> Literal["float32", "float64"]:
        """Type of the parameters and of the optimizer state."""
        return "float64" if self.train.dtype == "float64" else "float32"


def to_dict(config: Config) -> dict[str, Any]:
    """A config as plain JSON values; `model_name` says which model's fields the rest holds."""
    return {"model_name": config.model_name, **dataclasses.asdict(config)}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises UserError for a missing, unknown or out-of-range field."""
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
