"""Models of karpathy/nanochat as of November 2025 (nanochat/checkpoint_manager.py, nanochat/gpt.py).

The commit is 16788eed3cc3a79a94fa5bb852db722f79852cb7.

    model_NNNNNN.pt         state_dict: our names behind "transformer.", but for lm_head; the embedding in bfloat16
    meta_NNNNNN.json        step, model_config, user_config, and what the training loop must remember

The tokenizer is a pickle that upstream keeps elsewhere; a tokenizer.json beside the checkpoint is taken.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinstep.config import Config, CorpusConfig, GPTConfig, from_dict
from twinstep.errors import UserError
from twinstep.presets import PRESETS
from twinstep.pretrained.arrays import check_names
from twinstep.pretrained.files import read_json, read_tokenizer, with_tokenizer
from twinstep.pretrained.huggingface import names as gpt_names
from twinstep.pretrained.torch_file import read_state_dict
from twinstep.resolve import horizon

# What came after November 2025, by the names of its parameters.
NEWER = {
    r"value_embeds\..*": "value embeddings",
    r".*\.ve_gate\..*": "gates on value embeddings",
    r"resid_lambdas|x0_lambdas": "per-layer scalars",
    r"smear.*": "smear",
    r"backout.*": "backout",
    r".*(\.norm|_norm|\.ln_.)\..*": "norms with parameters",
    r".*\.bias": "biases",
}
SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
OURS = "twinstep"  # where a meta file of ours holds our configuration; upstream ignores it


def model_files(folder: Path) -> dict[int, Path]:
    """Step -> file of every checkpoint in a folder."""
    found = {path: re.fullmatch(r"model_(\d{6,})\.pt", path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in sorted(found.items()) if match}


def choose_file(source: Path, step: int | None = None) -> tuple[int, Path]:
    """The step asked for, or the newest, and its file. Raises UserError if there is none."""
    files = model_files(source)
    if not files:
        raise UserError(f"{source} has no model_NNNNNN.pt; pass the folder that holds it")
    if step is not None and step not in files:
        raise UserError(f"{source} has no checkpoint of step {step}; there are {', '.join(map(str, files))}")
    step = max(files) if step is None else step
    return step, files[step]


def read_config(source: Path, step: int | None = None) -> Config:
    """Our configuration of a checkpoint. Raises UserError for what is missing, damaged, or of another architecture."""
    step, _ = choose_file(source, step)
    config, _ = read_meta(source / f"meta_{step:06d}.json")
    return with_tokenizer(config, read_tokenizer(source))


def read_weights(source: Path, config: Config, step: int | None = None) -> dict[str, np.ndarray]:
    """The weights of the model that `read_config` found, by our names. Raises UserError if they are others."""
    _, path = choose_file(source, step)
    state = read_state_dict(path)
    state = {name.removeprefix("_orig_mod."): array for name, array in state.items()}  # torch.compile's prefix
    refuse_newer(path, state)
    assert isinstance(config.model, GPTConfig)
    theirs = {name: upstream_name(name) for name in gpt_names(config.model.depth)}
    check_names(path, state, theirs.values())
    return {name: state[their_name] for name, their_name in theirs.items()}


def refuse_newer(path: Path, names: Iterable[str]) -> None:
    """Raises UserError naming what a checkpoint has that the architecture of November 2025 has not."""
    found: dict[str, str] = {}
    for name in names:
        for pattern, feature in NEWER.items():
            if re.fullmatch(pattern, name):
                found.setdefault(feature, name)
    if found:
        features = ", ".join(f"{feature} ({name})" for feature, name in found.items())
        raise UserError(f"{path} is of another nanochat than that of November 2025: {features} not supported")


def read_meta(path: Path) -> tuple[Config, dict[str, Any] | None]:
    """Configuration and facts of a checkpoint, from ours where it holds one, else from upstream's settings."""
    meta = read_json(path)
    sizes, user = meta.get("model_config"), meta.get("user_config")
    user = user if isinstance(user, dict) else {}
    if not isinstance(sizes, dict) or set(SIZES) - set(sizes):
        raise UserError(f"{path} has no model_config with {', '.join(SIZES)}; copy it again")
    if sizes.get("window_pattern", "L") != "L":
        raise UserError(f"{path} asks for sliding windows ({sizes['window_pattern']}), which are not supported")
    for name in set(sizes) - {*SIZES, "window_pattern"}:
        raise UserError(f"{path} sets {name} in its model_config, which is not supported")
    if not all(isinstance(sizes[name], int) and sizes[name] > 0 for name in SIZES):
        raise UserError(f"{path} has a model_config of other than counts: {sizes}")
    ours = meta.get(OURS)
    try:
        base = from_dict(ours["config"]) if isinstance(ours, dict) else upstream_settings(sizes, user)
        if not isinstance(base.model, GPTConfig) or not isinstance(base.data, CorpusConfig):
            raise UserError(f"its {OURS} is of {base.model_name}, not of gpt")
        model = replace(
            base.model,
            depth=sizes["n_layer"],
            d_model=sizes["n_embd"],
            head_dim=sizes["n_embd"] // sizes["n_head"],
            kv_heads=sizes["n_kv_head"],
            vocab_size=sizes["vocab_size"],
        )
        config = replace(base, model=model, data=replace(base.data, sequence_len=sizes["sequence_len"]))
        config = replace(config, train=replace(config.train, steps=horizon(config)))
    except (UserError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: {error}") from error
    return config, ours.get("facts") if isinstance(ours, dict) else None


def upstream_settings(sizes: Mapping[str, int], user: Mapping[str, Any]) -> Config:
    """A configuration from the settings of scripts/base_train.py; what they lack is as upstream has it."""
    base = PRESETS["nanochat-d20"]
    fields = {
        "embedding_lr": "embedding_lr",
        "unembedding_lr": "head_lr",
        "matrix_lr": "matrix_lr",
        "weight_decay": "weight_decay",
        "grad_clip": "clip_norm",
        "warmup_ratio": "warmup_fraction",
        "warmdown_ratio": "warmdown_fraction",
        "final_lr_frac": "final_lr_fraction",
    }
    optimizer = replace(base.optimizer, **{ours: user[theirs] for theirs, ours in fields.items() if theirs in user})
    tokens = user.get("total_batch_size", base.train.batch_tokens)
    rows = user.get("device_batch_size", 1) * sizes["sequence_len"]
    horizons = {
        "steps": user.get("num_iterations", -1),
        "target_flops": user.get("target_flops", -1),
        "tokens_per_parameter": user.get("target_param_data_ratio", base.train.tokens_per_parameter),
    }
    given = next((name for name, value in horizons.items() if value > 0), None)
    train = replace(base.train, batch_tokens=tokens, accumulation=tokens // rows if tokens % rows == 0 else 1)
    train = replace(train, **{"tokens_per_parameter": None, **({given: horizons[given]} if given else {})})
    data = CorpusConfig(sequence_len=sizes["sequence_len"], tokenizer="bpe", bpe_vocab_size=sizes["vocab_size"])
    return replace(base, data=data, optimizer=optimizer, train=train)


def upstream_name(name: str) -> str:
    """Our name of a parameter, as upstream calls it."""
    return name if name.startswith("lm_head.") else f"transformer.{name}"
