"""Checkpoints of karpathy/nanochat as of November 2025 (nanochat/checkpoint_manager.py, nanochat/gpt.py).

The commit is 16788eed3cc3a79a94fa5bb852db722f79852cb7.

    model_NNNNNN.pt         state_dict: our names behind "transformer.", but for lm_head; the embedding in bfloat16
    meta_NNNNNN.json        step, model_config, user_config, and what the training loop must remember
    optim_NNNNNN_rankN.pt   see `nanochat_optimizer.py`

The files are read with torch.load(weights_only=True), which runs no code. The tokenizer is a pickle that upstream
keeps elsewhere; a tokenizer.json beside the checkpoint is taken along.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from parity.formats import nanochat_optimizer
from parity.formats.files import read_json, read_tokenizer, read_torch, write_json, write_tokenizer
from parity.formats.snapshot import Snapshot, as_numpy, check_names, weight_shapes_of, without_places
from twinstep.config import Config, CorpusConfig, GPTConfig, from_dict, to_dict
from twinstep.errors import UserError
from twinstep.presets import PRESETS
from twinstep.progress import numbers
from twinstep.resolve import horizon
from twinstep.run_dir import METRICS

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
FIXED = {"softcap": 15.0, "rope_theta": 10000.0}  # constants of upstream's code, not of its configuration
OURS = "twinstep"  # where a meta file of ours holds our configuration; upstream ignores it


def model_files(folder: Path) -> dict[int, Path]:
    """Step -> file of every checkpoint in a folder."""
    found = {path: re.fullmatch(r"model_(\d{6,})\.pt", path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in sorted(found.items()) if match}


def read(source: Path, step: int | None) -> Snapshot:
    """Raises UserError for what is missing, damaged, or of another architecture."""
    files = model_files(source)
    if not files:
        raise UserError(f"{source} has no model_NNNNNN.pt; pass the folder that holds it")
    if step is not None and step not in files:
        raise UserError(f"{source} has no checkpoint of step {step}; there are {', '.join(map(str, files))}")
    step = max(files) if step is None else step
    path, meta_path = files[step], source / f"meta_{step:06d}.json"
    state = read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no state_dict; pass a checkpoint of nanochat")
    state = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in state.items()}  # torch.compile's prefix
    refuse_newer(path, state)
    config, facts = read_meta(meta_path)
    names = {ours: upstream_name(ours) for ours in weight_shapes_of(config)}
    check_names(path, state, names.values())
    weights = as_numpy(path, {ours: state[theirs] for ours, theirs in names.items()}, "float32")
    optimizer = nanochat_optimizer.read(source, step, config)
    if optimizer is None:
        step = 0
    if optimizer is None or facts is None or facts.get("config") != numbers(config):
        facts = None
    tokenizer = read_tokenizer(source)
    assert isinstance(config.data, CorpusConfig)
    if tokenizer is None and config.data.tokenizer == "bpe":
        print(f"note: {source} holds no tokenizer.json; put the model's own into the run to train or generate")
    return Snapshot(config, step, weights, optimizer, facts, tokenizer)


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write into the empty `folder`. Raises UserError for a model that upstream's code cannot hold."""
    config, step = snapshot.config, snapshot.step
    if not isinstance(config.model, GPTConfig):
        raise UserError(f"nanochat holds a gpt, and this is a run of {config.model_name}; pass --to safetensors")
    for name, value in FIXED.items():
        if getattr(config.model, name) != value:
            raise UserError(f"nanochat has {name} {value:g} in its code, the run {getattr(config.model, name):g}")
    if config.param_dtype != "float32":
        raise UserError(f"nanochat keeps float32, the run {config.param_dtype}; pass --to safetensors")
    if config.model.rotary_dtype != "bfloat16":
        print(f"note: nanochat rounds the rotary table to bfloat16, this run to {config.model.rotary_dtype}")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in snapshot.weights.items()}
    tensors["wte.weight"] = as_bfloat16(tensors["wte.weight"])
    torch.save({upstream_name(name): tensors[name] for name in tensors}, folder / f"model_{step:06d}.pt")
    write_json(folder / f"meta_{step:06d}.json", make_meta(snapshot))
    nanochat_optimizer.write(folder, snapshot)
    write_tokenizer(folder, snapshot.tokenizer)


def refuse_newer(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError naming what a checkpoint has that the architecture of November 2025 has not."""
    found: dict[str, str] = {}
    for name in state:
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
    try:
        ours = meta.get(OURS)
        base = from_dict(ours["config"]) if isinstance(ours, dict) else upstream_settings(sizes, user)
        assert isinstance(base.model, GPTConfig)
        assert isinstance(base.data, CorpusConfig)
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
    except (UserError, KeyError, TypeError) as error:
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


def make_meta(snapshot: Snapshot) -> dict[str, Any]:
    """What upstream writes, so far as we know it; its data position starts over."""
    config, o = snapshot.config, snapshot.config.optimizer
    assert isinstance(config.model, GPTConfig)
    assert isinstance(config.data, CorpusConfig)
    lines = snapshot.files.get(METRICS, b"").decode().splitlines()
    bpb = [float(match[1]) for line in lines if (match := re.search(r'"val_bpb": ([\d.]+)', line))]
    device_batch_size = config.batch_size // config.train.accumulation
    return {
        "step": snapshot.step,
        "val_bpb": bpb[-1] if bpb else None,
        "model_config": {
            "sequence_len": config.data.sequence_len,
            "vocab_size": config.model.vocab_size,
            "n_layer": config.model.depth,
            "n_head": config.model.heads,
            "n_kv_head": config.model.key_value_heads,
            "n_embd": config.model.width,
        },
        "user_config": {
            "depth": config.model.depth,
            "max_seq_len": config.data.sequence_len,
            "num_iterations": config.train.steps,
            "device_batch_size": device_batch_size,
            "total_batch_size": config.batch_size * config.data.sequence_len,
            "embedding_lr": o.embedding_lr,
            "unembedding_lr": o.head_lr,
            "weight_decay": o.weight_decay,
            "matrix_lr": o.matrix_lr,
            "grad_clip": o.clip_norm,
            "warmup_ratio": o.warmup_fraction,
            "warmdown_ratio": o.warmdown_fraction,
            "final_lr_frac": o.final_lr_fraction,
        },
        "device_batch_size": device_batch_size,
        "max_seq_len": config.data.sequence_len,
        "dataloader_state_dict": None,
        "loop_state": {
            "min_val_bpb": min(bpb, default=math.inf),
            "smooth_train_loss": 0.0,
            "total_training_time": 0.0,
        },
        OURS: {"config": to_dict(without_places(config)), "facts": snapshot.facts},
    }


def upstream_name(name: str) -> str:
    """Our name of a parameter, as upstream calls it."""
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def as_bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    """In bfloat16, as upstream keeps its embedding, where that loses nothing; else unchanged."""
    narrow = tensor.bfloat16()
    return narrow if torch.equal(narrow.float(), tensor) else tensor
