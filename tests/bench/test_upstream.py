"""A checkout of nanochat is measured through its own names; here a stand-in has the names and little else."""

import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch

from bench import gpt_sides
from bench.upstream import check_checkout, prepare_upstream
from twinstep.errors import UserError

SPEC = {"depth": 2, "d_model": 8, "head_dim": 4, "vocab_size": 11, "sequence_len": 6, "batch_size": 3}

# The classes, methods and arguments of nanochat's November 2025 that the bench calls; one embedding and one product.
GPT_SOURCE = """
    from dataclasses import dataclass
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from nanochat.muon import Muon

    @dataclass
    class GPTConfig:
        sequence_len: int = 1024
        vocab_size: int = 50304
        n_layer: int = 12
        n_head: int = 6
        n_kv_head: int = 6
        n_embd: int = 768

    class GPT(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.wte = nn.Embedding(config.vocab_size, config.n_embd)
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

        def init_weights(self):
            torch.nn.init.normal_(self.wte.weight)
            torch.nn.init.zeros_(self.lm_head.weight)

        def setup_optimizers(self, unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, weight_decay=0.0):
            return [torch.optim.AdamW(self.wte.parameters(), lr=embedding_lr), Muon(self.lm_head.parameters())]

        def forward(self, idx, targets=None, kv_cache=None, loss_reduction="mean"):
            logits = self.lm_head(self.wte(idx))
            return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), reduction=loss_reduction)
"""
MUON_SOURCE = """
    import torch

    class Muon(torch.optim.SGD):
        def __init__(self, params, lr=0.02):
            super().__init__(params, lr=lr)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    package = tmp_path / "nanochat"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "gpt.py").write_text(textwrap.dedent(GPT_SOURCE))
    (package / "muon.py").write_text(textwrap.dedent(MUON_SOURCE))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield str(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "nanochat"]:
        del sys.modules[name]


def test_a_step_trains_upstreams_own_model_with_its_own_optimizers(checkout, monkeypatch):
    """From a head of zeros the loss starts at log V and falls; compiling is left out, it would take half a minute."""
    compiled: list[Any] = []

    def keep(model: torch.nn.Module, **options: bool) -> torch.nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", keep)
    check_checkout(checkout)
    config = gpt_sides.config_of(SPEC)
    step = prepare_upstream(config, gpt_sides.batch_of(config), checkout).step
    losses = [float(step()) for _ in range(30)]
    model = compiled[0]
    assert [type(module).__module__ for module in compiled] == ["nanochat.gpt"]
    c = model.config
    assert (c.sequence_len, c.vocab_size, c.n_layer, c.n_head, c.n_kv_head, c.n_embd) == (6, 11, 2, 2, 2, 8)
    assert model.lm_head.weight.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert losses[0] == pytest.approx(np.log(11))
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("missing", ["gpt.py", "muon.py"])
def test_a_folder_without_upstreams_files_is_refused_by_name(checkout, missing, tmp_path):
    (tmp_path / "nanochat" / missing).unlink()
    with pytest.raises(UserError, match=f"has no nanochat/{missing}; pass the folder of a checkout"):
        check_checkout(checkout)
