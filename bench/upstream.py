"""karpathy/nanochat's own model and optimizers, from a checkout that the user has.

Its layout must be that of November 2025, commit 16788eed3cc3a79a94fa5bb852db722f79852cb7.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpt_sides import Work, on_torch
from twinstep.config import Config, GPTConfig
from twinstep.errors import UserError


def check_checkout(folder: str) -> None:
    """Raises UserError unless the folder holds nanochat's model and Muon."""
    for name in ("gpt.py", "muon.py"):
        if not (Path(folder) / "nanochat" / name).is_file():
            raise UserError(
                f"--upstream {folder} has no nanochat/{name}; pass the folder of a checkout of nanochat, "
                "November 2025 (16788ee)"
            )


def prepare_upstream(config: Config, batch: dict[str, np.ndarray], folder: str) -> Work:
    """One step as nanochat's scripts/base_train.py takes it: its model compiled, its own optimizers as they are.

    On a GPU under autocast to bfloat16, with TF32 for what stays in float32.
    """
    import torch

    from torch_ref.processes import device

    sys.path.insert(0, folder)
    gpt: Any = importlib.import_module("nanochat.gpt")
    m = config.model
    assert isinstance(m, GPTConfig)
    sequence_len = batch["tokens"].shape[-1]
    model = gpt.GPT(
        gpt.GPTConfig(
            sequence_len=sequence_len,
            vocab_size=m.vocab_size,
            n_layer=m.depth,
            n_head=m.heads,
            n_kv_head=m.key_value_heads,
            n_embd=m.width,
        )
    )
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    model.to(device())
    model.init_weights()
    optimizers = model.setup_optimizers()
    compiled = torch.compile(model, dynamic=False)
    ids = [torch.from_numpy(batch[name][0].astype(np.int64)) for name in ("tokens", "targets")]

    def step() -> Any:
        tokens, targets = (x.to(device(), non_blocking=True) for x in ids)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            loss = compiled(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return on_torch(step)
