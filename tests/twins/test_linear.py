"""The linear classifier beside scikit-learn's LogisticRegression, which finds the same model's optimum otherwise."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

from jax_impl import models as jax_models
from jax_impl import step as jax_step
from jax_impl.optimizer import make_optimizer
from jax_impl.tree import flatten
from torch_ref import models as torch_models
from torch_ref import step as torch_step
from torch_ref.losses import loss_sums
from torch_ref.optimizer import setup_optimizers
from twinstep.config import Config, LinearConfig, OptimizerConfig, TabularConfig, TrainConfig

C = 0.5  # scikit-learn minimizes |weight|^2 / 2 + C * summed nats

pytestmark = pytest.mark.usefixtures("x64")


def make_config(head, features, classes, **train):
    return Config(
        model=LinearConfig(head=head, features=features, classes=classes),
        data=TabularConfig(),
        optimizer=OptimizerConfig(optimizer="adamw", adamw_lr=0.1, clip_norm=0.0, beta1=0.9, beta2=0.99, eps=1e-8),
        train=TrainConfig(dtype="float64", **train),
    )


def fit(x, y, c):
    with warnings.catch_warnings(action="ignore"):  # scikit-learn's own, about options that it renames
        return LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x, y)


def jax_gradient(config, weights, x, y):
    """Sums over (x, y), and the gradient of the summed loss by name."""
    model = jax_models.make_model(config)
    params, batch = jax_models.load_tree(model.params, weights), {"inputs": jnp.asarray(x), "targets": jnp.asarray(y)}
    sums, _, grads = jax_step.micro_step(model, params, {}, batch, jax.random.key(0))
    return sums, flatten(grads)


def torch_gradient(config, weights, x, y):
    model = torch_models.make_model(config)
    torch_models.load_weights(model, weights)
    sums = loss_sums(model(torch.tensor(x)), torch.tensor(y))
    sums.nats.backward()
    return sums, {name: p.grad for name, p in model.named_parameters()}


def jax_training(config, weights, x, y):
    """The summed loss after all steps on the batch (x, y), and the weights by name."""
    model = jax_models.make_model(config)
    optimizer = make_optimizer(config, model.params)
    state = jax_step.init_state(model, optimizer, weights, 0)
    batch = {"inputs": jnp.asarray(x), "targets": jnp.asarray(y)}
    micro_batches = jax.tree.map(lambda a: a[None], batch)
    step = jax.jit(lambda state: jax_step.train_step(config, model, optimizer, state, micro_batches)[0])
    for _ in range(config.train.steps):
        state = step(state)
    return jax_step.eval_step(model, state.params, {}, batch).nats, flatten(state.params)


def torch_training(config, weights, x, y):
    model = torch_models.make_model(config)
    torch_models.load_weights(model, weights)
    optimizers = setup_optimizers(config, model)
    batch = {"inputs": torch.tensor(x), "targets": torch.tensor(y)}
    micro_batches = {name: tensor[None] for name, tensor in batch.items()}
    for step in range(config.train.steps):
        torch_step.train_step(config, model, optimizers, step, micro_batches)
    return torch_step.eval_step(model, batch).nats, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("gradient", [jax_gradient, torch_gradient], ids=["jax", "torch"])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_at_sklearns_optimum_our_gradient_is_what_its_penalty_pulls(head, gradient):
    raw = load_digits(n_class=4) if head == "softmax" else load_breast_cancer()
    x, y = raw.data[:300], raw.target[:300]
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-3)
    found = fit(x, y, C)
    config = make_config(head, x.shape[1], len(np.unique(y)))
    sums, grads = gradient(config, {"linear.weight": found.coef_, "linear.bias": found.intercept_}, x, y)
    scale = np.linalg.norm(found.coef_) / C
    assert np.linalg.norm(C * np.asarray(grads["linear.weight"]) + found.coef_) / C <= 1e-4 * scale
    assert np.linalg.norm(np.asarray(grads["linear.bias"])) <= 1e-4 * scale
    assert int(sums.correct) == (found.predict(x) == y).sum()
    nats = -np.log(found.predict_proba(x)[np.arange(len(x)), y]).sum()
    np.testing.assert_allclose(sums.nats.item(), nats, rtol=1e-9)


@pytest.mark.parametrize("training", [jax_training, torch_training], ids=["jax", "torch"])
def test_training_ends_at_sklearns_optimum(training):
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 4))
    # Noisy labels: no plane separates them, so the optimum is finite without a penalty.
    y = (x @ [1.0, -2.0, 0.5, 0.0] + 0.3 + random.logistic(size=300) > 0).astype(int)
    found = fit(x, y, np.inf)
    best = -np.log(found.predict_proba(x)[np.arange(300), y]).mean()

    config = make_config("sigmoid", 4, 2, steps=300, batch_size=300)
    nats, weights = training(config, {"linear.weight": np.zeros((1, 4)), "linear.bias": np.zeros(1)}, x, y)
    assert -1e-9 < nats.item() / 300 - best < 1e-7
    np.testing.assert_allclose(weights["linear.weight"], found.coef_, atol=1e-3)
    np.testing.assert_allclose(weights["linear.bias"], found.intercept_, atol=1e-3)
