"""A run: how it trains, where it runs, what it writes, and all parts together."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from twinstep.config.bounds import COUNT, NATURAL, POSITIVE, Bound, check_bounds, check_text
from twinstep.config.data import CorpusConfig, DataConfig
from twinstep.config.models import MODELS, Dtype, GPTConfig, MLPConfig, ModelConfig
from twinstep.config.optimizer import OptimizerConfig
from twinstep.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Horizon, batch size, seed, precision and evaluation."""

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
    """Gradient accumulation: micro-steps per optimizer step. The gradient is the mean over all unmasked targets."""
    seed: int = 0
    """Seed of initial weights, data order, dropout and samples."""
    init: Literal["native", "nonzero"] = "native"
    """native: as upstream, head and output projections at zero; nonzero: these too are random."""
    init_from: str | None = None
    """Folder of a run, or a Hugging Face, nanochat or safetensors model, to begin with: its weights and tokenizer."""
    dtype: Dtype = "float32"
    """Compute dtype; parameters and optimizer state stay float32 (float64 in float64 runs)."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 matrix products on accelerators: default may use TF32 or bfloat16 passes."""
    remat: bool = False
    """Rematerialization: recompute each block's activations in the backward pass; less memory, more compute."""
    eval_every: int = 0
    """Steps between evaluations, besides one before and one after training; 0: only those two and one half way."""
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
    """jit: one device; pmap: data parallel; fsdp: parameters and optimizer state sharded too."""
    coordinator: str | None = None
    """host:port of process 0 of a run over several hosts; detected on TPU pods and SLURM."""
    num_processes: int | None = None
    """Processes of a run over several hosts."""
    process_id: int | None = None
    """This process's number, from 0."""
    keep_freed_memory: bool = True
    """jax_impl on CPUs: glibc keeps freed memory, dispatch is synchronous; up to a tenth faster, 2 GB more memory."""
    compilation_cache: bool = True
    """jax_impl: keep compiled programs in the user's cache folder, so that the next start need not compile."""
    compile: bool = False
    """torch_ref: compile the model and Muon's orthogonalization with torch.compile (jax_impl always compiles)."""

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
    """Continue the run in --out-dir (the newest one when left out) from its newest finished checkpoint."""
    extend_to: int | None = None
    """With --resume: the step to go on to, by the schedules of so many steps from here on; --steps when left out."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = 3
    """Checkpoints kept beside the best one."""
    sample_every: int = 0
    """Steps between samples of text; 0: only at the end."""
    sample_prompt: str = ""
    """Text that samples continue; empty: the beginning of a document."""
    sample_tokens: int = 200
    """Length of a sample in tokens."""
    tensorboard: bool = False
    """Write TensorBoard event files too (extra: tensorboard)."""
    wandb: bool = False
    """Log to Weights & Biases too (extra: wandb; WANDB_MODE=offline keeps it on this machine)."""
    profile: str | None = None
    """FIRST:LAST, steps counted as in the log, from 1: a trace of these goes to profile/ in the run directory."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "extend_to": COUNT,
        "log_every": COUNT,
        "save_every": NATURAL,
        "keep_last": COUNT,
        "sample_every": NATURAL,
        "sample_tokens": COUNT,
    }

    def __post_init__(self) -> None:
        check_bounds(self)
        check_text("sample_prompt", self.sample_prompt)
        if self.profile is not None and not self.profile_steps:
            raise UserError(f"--profile is {self.profile}; it must be FIRST:LAST, two steps from 1 on, such as 11:13")

    @property
    def profile_steps(self) -> range:
        """The steps to profile; empty where none are, or where `profile` does not name any."""
        first, _, last = (self.profile or "").partition(":")
        if not (first.isdecimal() and last.isdecimal()):
            return range(0)
        return range(int(first), int(last) + 1) if int(first) >= 1 else range(0)


@dataclass(frozen=True)
class Config:
    """All of a run. `train`, `optimizer`, `model` and `data` fix every number it computes."""

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
