"""Checkpoints of karpathy/nanochat as of November 2025 (nanochat/checkpoint_manager.py, nanochat/gpt.py).

The commit is 16788eed3cc3a79a94fa5bb852db722f79852cb7.

    model_NNNNNN.pt         state_dict: our names behind "transformer.", but for lm_head; the embedding in bfloat16
    meta_NNNNNN.json        step, model_config, user_config, and what the training loop must remember
    optim_NNNNNN_rankN.pt   see `nanochat_optimizer.py`

Reading runs no code: the model is read by `twinstep.pretrained`, the optimizers by torch.load(weights_only=True). The
tokenizer is a pickle that upstream keeps elsewhere; a tokenizer.json beside the checkpoint is taken along.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch

from parity.formats import nanochat_optimizer
from parity.formats.files import write_json, write_tokenizer
from parity.formats.snapshot import Snapshot, without_places
from twinstep.config import CorpusConfig, GPTConfig, to_dict
from twinstep.errors import UserError
from twinstep.pretrained.files import read_tokenizer
from twinstep.pretrained.nanochat import OURS, choose_file, read_meta, read_weights, upstream_name
from twinstep.progress import numbers
from twinstep.run_dir import METRICS

FIXED = {"softcap": 15.0, "rope_theta": 10000.0}  # constants of upstream's code, not of its configuration


def read(source: Path, step: int | None) -> Snapshot:
    """Raises UserError for what is missing, damaged, or of another architecture."""
    step, _ = choose_file(source, step)
    config, facts = read_meta(source / f"meta_{step:06d}.json")
    weights = read_weights(source, config, step)
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


def as_bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    """In bfloat16, as upstream keeps its embedding, where that loses nothing; else unchanged."""
    narrow = tensor.bfloat16()
    return narrow if torch.equal(narrow.float(), tensor) else tensor
