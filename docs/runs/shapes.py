"""From the batch to the scalar loss: one linear layer by hand, then every named value of the smallest GPT."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

import jax_impl.models as jax_models
import torch_ref.models as torch_models
from jax_impl.losses import softmax_cross_entropy
from parity.capture import capture_torch, tagged_shapes
from torch_ref.losses import softmax_cross_entropy as torch_softmax_cross_entropy
from twinstep.config import Config, CorpusConfig, GPTConfig
from twinstep.presets import DEFAULTS

B, T = 2, 8
SMALL = Config(
    model=GPTConfig(depth=1, d_model=24, head_dim=4, kv_heads=3, vocab_size=61),
    data=CorpusConfig(sequence_len=T),
    train=replace(DEFAULTS["gpt"].train, batch_size=B),
)


def by_hand() -> None:
    print("== linear ==")
    random = np.random.default_rng(0)
    inputs_BF, targets_B = random.normal(size=(4, 10)), np.array([0, 1, 1, 0])
    weight_VF, bias_V = random.normal(size=(2, 10)) / 3, np.zeros(2)
    print(f"{'':<22} {'torch':<12} jax")
    torch_logits = F.linear(torch.tensor(inputs_BF), torch.tensor(weight_VF), torch.tensor(bias_V))
    logits = jnp.asarray(inputs_BF) @ weight_VF.T + bias_V
    torch_nats = torch_softmax_cross_entropy(torch_logits, torch.tensor(targets_B))
    nats = softmax_cross_entropy(logits, jnp.asarray(targets_B))
    rows = {
        "x": (inputs_BF, inputs_BF),
        "weight": (weight_VF, weight_VF),
        "bias": (bias_V, bias_V),
        "logits = x Wᵀ + b": (torch_logits, logits),
        "targets": (targets_B, targets_B),
        "nats per example": (torch_nats, nats),
        "loss, their mean": (torch_nats.mean(), nats.mean()),
    }
    for name, (a, b) in rows.items():
        print(f"{name:<22} {tuple(a.shape)!s:<12} {tuple(b.shape)!s:<12}".rstrip())
    print("== softmax ==")
    first = torch_logits[0]
    print("logits of the first example      ", *(f"{z:.4f}" for z in first))
    print("softmax: its two probabilities   ", *(f"{p:.4f}" for p in first.softmax(0)))
    print(f"-log of the target's (class {targets_B[0]})     {torch_nats[0]:.4f}")
    print("of all four examples             ", *(f"{x:.4f}" for x in torch_nats))
    print(f"loss                              {torch_nats.mean():.4f} torch, {nats.mean():.4f} jax")


def of_gpt() -> None:
    """Every value that has a name in both frameworks, in torch's order."""
    print("== gpt ==")
    c = SMALL.model
    print(f"B {B}, T {T}, D {c.width}, H {c.heads}, K {c.key_value_heads}, C {c.head_dim}, V {c.vocab_size}")
    tokens = np.zeros((B, T), np.int32)
    reference = torch_models.make_model(SMALL)
    with capture_torch(reference, "logits") as passes:
        torch_logits = reference(torch.tensor(tokens))
    model = jax_models.make_model(SMALL)
    out, tagged = tagged_shapes(lambda params: model.bind(params, {}, train=True)(tokens), model.params)
    shapes = {name: shape.shape for name, shape in tagged.items()} | {"logits": out.shape}
    torch_nats = torch_softmax_cross_entropy(torch_logits, torch.tensor(tokens).long())
    nats = jax.eval_shape(softmax_cross_entropy, out, tokens)
    print(f"{'value':<22} {'torch':<16} {'jax':<16}".rstrip())
    rows = {name: (array.shape, shapes[name]) for name, array in passes[0].activations.items()}
    rows = {"tokens": (tokens.shape, tokens.shape), **rows, "targets": (tokens.shape, tokens.shape)}
    rows["nats per target"] = tuple(torch_nats.shape), nats.shape
    rows["loss, their mean"] = tuple(torch_nats.mean().shape), jax.eval_shape(jnp.mean, nats).shape
    for name, (a, b) in rows.items():
        print(f"{name:<22} {a!s:<16} {b!s}")


if __name__ == "__main__":
    with jax.enable_x64(True):
        by_hand()
    of_gpt()
