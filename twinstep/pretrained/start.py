"""--init-from DIR: a run that begins with the weights and the tokenizer of a model that is there."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinstep.config import Config, CorpusConfig, ModelConfig
from twinstep.errors import UserError
from twinstep.init import initial_weights
from twinstep.pretrained import detect, huggingface, nanochat, read_config, safetensors_folder
from twinstep.pretrained.arrays import check_arrays
from twinstep.run_dir import TOKENIZER

Weights = dict[str, np.ndarray]

# What decides a model's shapes or which head reads which channels, and the flags that set it.
SIZES = {
    "gpt": {
        "depth": "--depth",
        "width": "--d-model",
        "head_dim": "--head-dim",
        "key_value_heads": "--kv-heads",
        "vocab_size": "--vocab-size",
    },
    "embedding": {"d_model": "--d-model", "vocab_size": "--vocab-size"},
    "linear": {"head": "--head", "features": "--features", "classes": "--classes"},
    "mlp": {"hidden": "--hidden", "features": "--features", "classes": "--classes"},
}
TORCH_ONLY = "num_batches_tracked"  # BatchNorm's count of batches, which torch keeps and nobody reads


def with_model(base: Config, found: Config) -> Config:
    """`base` with the model of the configuration found in a folder, and with what that fixes of the data."""
    data = found.data
    if isinstance(data, CorpusConfig) and isinstance(base.data, CorpusConfig):
        fixed = {
            name: getattr(data, name) for name in ("sequence_len", "tokenizer", "bpe_vocab_size", "special_tokens")
        }
        data = replace(base.data, **fixed)
    return replace(base, model=found.model, data=data)


def check_model(config: Config, found: Config, source: Path) -> None:
    """Raises UserError if flags have made another model of what `source` holds."""
    if config.model_name != found.model_name:
        raise UserError(f"{source} holds a model of {found.model_name}, not of {config.model_name}; pass that name")
    for flag, ours, theirs in sizes_that_differ(config.model, found):
        raise UserError(f"{flag} is {ours}, but the model in {source} has {theirs}; leave the flag out")


def check_tokenizer(config: Config, found: Config, source: Path) -> None:
    """Raises UserError if flags ask for another tokenizer than that of `source`, or it has none and none is given."""
    if not isinstance(config.data, CorpusConfig) or not isinstance(found.data, CorpusConfig):
        return
    kind = found.data.tokenizer
    if kind == "bpe" and not (source / TOKENIZER).exists():
        if config.data.tokenizer_file is None:
            raise UserError(
                f"{source} has no {TOKENIZER}; pass --tokenizer with the one that its model was trained with"
            )
        return
    if config.data.tokenizer != kind:
        raise UserError(f"--tokenizer is {config.data.tokenizer}, but the model in {source} has {kind}; leave it out")
    if config.data.special_tokens != found.data.special_tokens:
        raise UserError(
            f"--special-tokens is {config.data.special_tokens}, but the tokenizer of the model in {source} has "
            f"{found.data.special_tokens}; leave it out"
        )
    if kind == "bpe" and config.data.bpe_vocab_size != found.data.bpe_vocab_size:
        raise UserError(
            f"--bpe-vocab-size is {config.data.bpe_vocab_size}, but the tokenizer in {source} has "
            f"{found.data.bpe_vocab_size} tokens; leave the flag out"
        )


def check_preset(preset: str, base: Config, found: Config, source: Path) -> None:
    """Raises UserError if a preset is of another model than `source` holds."""
    if base.model_name != found.model_name:
        raise UserError(f"{source} holds a model of {found.model_name}, not of {base.model_name}; leave --preset out")
    for flag, ours, theirs in sizes_that_differ(base.model, found):
        if ours is not None:
            raise UserError(f"--preset {preset} has {flag} {ours}, the model in {source} {theirs}; leave --preset out")


def sizes_that_differ(model: ModelConfig, found: Config) -> list[tuple[str, object, object]]:
    """(flag, a model's value, the other's) where a size is not that of the model found."""
    pairs = [(flag, getattr(model, n), getattr(found.model, n)) for n, flag in SIZES[found.model_name].items()]
    return [(flag, ours, theirs) for flag, ours, theirs in pairs if ours != theirs is not None]


def tokenizer_file(run: Path, config: Config) -> Path | None:
    """The tokenizer.json to read: the run's own, else that of --init-from; None where there is none yet."""
    if (run / TOKENIZER).exists():
        return run / TOKENIZER
    if config.train.init_from is None or not isinstance(config.data, CorpusConfig):
        return None
    source = Path(config.train.init_from)
    if not config.output.resume:  # a configuration that no command line has made is checked here
        check_tokenizer(config, read_config(source), source)
    return source / TOKENIZER if config.data.tokenizer == "bpe" else None


def first_weights(
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],
    load_run: Callable[[Path], tuple[Config, Weights]],
    summary: dict[str, Any],
    resumed: bool,
) -> Weights:
    """The weights that a run begins with, by name. Where they are from --init-from, their hash goes into `summary`.

    load_run: this framework's reader of runs. resumed: a checkpoint will take the place of these weights, so that
    --init-from need not be there any more. Raises UserError if the model there is missing, damaged, or not of these
    shapes.
    """
    if config.train.init_from is None or resumed:
        return initial_weights(shapes, config.train.seed, config.train.init)
    source = Path(config.train.init_from)
    check_model(config, read_config(source), source)
    match detect(source):
        case "run":
            _, weights = load_run(source)
        case "hf":
            weights = huggingface.read_weights(source, config)
        case "nanochat":
            weights = nanochat.read_weights(source, config)
        case _:
            weights = safetensors_folder.read_weights(source)
    weights = {name: array for name, array in weights.items() if not name.endswith(TORCH_ONLY)}
    check_arrays(source, weights, shapes)
    summary.update(init_from=str(source), init_sha256=sha256(weights))
    return weights


def sha256(weights: Weights) -> str:
    """A hash of names, shapes, types and numbers, whatever file they were in."""
    digest = hashlib.sha256()
    for name, array in sorted(weights.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
