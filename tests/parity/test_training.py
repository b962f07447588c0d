"""Ten float64 training steps in both frameworks: every loss, gradient leaf and parameter, at every step."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch

import jax_impl.models as jax_models
import torch_ref.models as torch_models
from jax_impl import step as jax_step
from jax_impl.optimizer import make_optimizer
from jax_impl.tree import flatten
from parity.probes import keep_gradients, probing_clip
from torch_ref import step as torch_step
from torch_ref.input import to_tensors
from torch_ref.optimizer import setup_optimizers
from twinstep.config import Config, LinearConfig, TabularConfig
from twinstep.data import load_data
from twinstep.init import initial_weights
from twinstep.presets import DEFAULTS, PRESETS
from twinstep.resolve import fill_in

STEPS = 10
# Float64 carries 1.1e-16; ten steps of a few thousand sums each stay far below this. A wrong constant does not.
LIMIT = 1e-10


def with_optimizer(config: Config, **settings) -> Config:
    return replace(config, optimizer=replace(config.optimizer, **settings))


MLP = replace(DEFAULTS["mlp"], model=replace(DEFAULTS["mlp"].model, shared_dropout=True))
SIGMOID = replace(DEFAULTS["linear"], model=LinearConfig(head="sigmoid"), data=TabularConfig("breast_cancer"))
CONFIGS = {
    "gpt": PRESETS["parity"],
    "gpt with one AdamW": with_optimizer(PRESETS["parity"], optimizer="adamw"),
    "linear": DEFAULTS["linear"],
    "linear with one AdamW": with_optimizer(DEFAULTS["linear"], optimizer="adamw", weight_decay=0.1),
    "linear with one logit": SIGMOID,
    "embedding": DEFAULTS["embedding"],
    "embedding with SGD": with_optimizer(DEFAULTS["embedding"], matrix_optimizer="sgd", matrix_weight_decay=0.1),
    "mlp": MLP,
}


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / norm) if norm > 0 else float(np.linalg.norm(found))


def assert_leaves_agree(step: int, what: str, found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name in expected:
        difference = relative_l2(np.asarray(found[name]), np.asarray(expected[name]))
        assert difference <= LIMIT, f"step {step}: {what} {name} differs by {difference:.3g} relative"


def train_side_by_side(config: Config, monkeypatch, optimizer=None) -> None:
    config = replace(config, train=replace(config.train, dtype="float64", steps=STEPS))
    data = load_data(config)
    config = fill_in(config, data)
    reference = torch_models.make_model(config)
    weights = initial_weights(torch_models.weight_shapes(reference), config.train.seed, config.train.init)
    torch_models.load_weights(reference, weights)
    reference.train()
    optimizers = setup_optimizers(config, reference)
    model = jax_models.make_model(config)
    transform = keep_gradients(optimizer or make_optimizer(config, model.params))
    state = jax_step.init_state(model, transform, weights, config.train.seed)
    step = jax.jit(partial(jax_step.train_step, config, model, transform))

    torch_gradients: dict[str, np.ndarray] = {}
    clip = torch_step.clip_by_global_norm

    def clip_and_keep(module, max_norm):
        torch_gradients.update({name: p.grad.numpy().copy() for name, p in module.named_parameters()})
        return clip(module, max_norm)

    monkeypatch.setattr(torch_step, "clip_by_global_norm", clip_and_keep)
    for number in range(STEPS):
        batch = data.train.batch(number)
        expected = torch_step.train_step(config, reference, optimizers, number, to_tensors(batch))
        with probing_clip():
            state, found = step(state, batch)
        for metric in ("loss", "grad_norm", "learning_rate"):
            assert float(found[metric]) == pytest.approx(float(expected[metric]), rel=LIMIT), f"step {number}: {metric}"
        assert_leaves_agree(number, "gradient", flatten(state.opt_state[0].observed), torch_gradients)
        arrays = {n: t.numpy() for n, t in reference.state_dict().items() if not n.endswith("num_batches_tracked")}
        assert_leaves_agree(number, "parameter", flatten(state.params) | flatten(state.buffers), arrays)


# The native start, of which some parts are zero, in one model with and one without a text.
@pytest.mark.parametrize(
    ("name", "init"), [*((name, "nonzero") for name in CONFIGS), ("gpt", "native"), ("mlp", "native")]
)
def test_ten_steps_agree_in_every_loss_gradient_and_parameter(name, init, x64, monkeypatch):
    config = CONFIGS[name]
    train_side_by_side(replace(config, train=replace(config.train, init=init)), monkeypatch)


def test_a_step_with_another_adam_eps_is_found(x64, monkeypatch):
    config = CONFIGS["linear with one AdamW"]
    other = replace(config.train, dtype="float64", steps=STEPS)
    filled = fill_in(replace(config, train=other), load_data(config))
    planted = make_optimizer(with_optimizer(filled, eps=1e-8), jax_models.make_model(filled).params)
    with pytest.raises(AssertionError, match=r"step 0: parameter linear\.\w+ differs"):
        train_side_by_side(config, monkeypatch, planted)


def test_two_logits_and_one_logit_are_the_same_model():
    """softmax over (z0, z1) is the sigmoid of z1 - z0; so are the losses and, by the chain rule, the gradients."""
    from torch_ref.losses import sigmoid_binary_cross_entropy, softmax_cross_entropy

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, 2, (64,), generator=generator)
    difference = (logits[:, 1:] - logits[:, :1]).detach().requires_grad_()
    two, one = softmax_cross_entropy(logits, targets), sigmoid_binary_cross_entropy(difference, targets)
    torch.testing.assert_close(two, one, rtol=1e-14, atol=1e-15)
    two.sum().backward()
    one.sum().backward()
    torch.testing.assert_close(logits.grad[:, 1:], difference.grad, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(logits.grad[:, :1], -difference.grad, rtol=1e-13, atol=1e-15)


def test_two_logits_and_one_logit_are_the_same_model_in_jax(x64):
    from jax_impl.losses import sigmoid_binary_cross_entropy, softmax_cross_entropy

    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((64, 2)), random.integers(0, 2, 64)
    difference = logits[:, 1:] - logits[:, :1]
    two, one = softmax_cross_entropy(logits, targets), sigmoid_binary_cross_entropy(difference, targets)
    np.testing.assert_allclose(two, one, rtol=1e-13)
    of_two = jax.grad(lambda z: softmax_cross_entropy(z, targets).sum())(logits)
    of_one = jax.grad(lambda z: sigmoid_binary_cross_entropy(z, targets).sum())(difference)
    np.testing.assert_allclose(of_two[:, 1:], of_one, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(of_two[:, :1], -of_one, rtol=1e-12, atol=1e-15)
