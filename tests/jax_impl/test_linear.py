"""The linear classifier beside scikit-learn's LogisticRegression, which finds the same model's optimum otherwise."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

from jax_impl.models import load_tree, make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import eval_step, init_state, micro_step, train_step
from jax_impl.tree import flatten
from twinstep.config import Config, LinearConfig, OptimizerConfig, TabularConfig, TrainConfig

C = 0.5  # scikit-learn minimizes |weight|^2 / 2 + C * summed nats


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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_at_sklearns_optimum_our_gradient_is_what_its_penalty_pulls(head):
    raw = load_digits(n_class=4) if head == "softmax" else load_breast_cancer()
    x, y = raw.data[:300], raw.target[:300]
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-3)
    found = fit(x, y, C)
    config = make_config(head, x.shape[1], len(np.unique(y)))
    model = make_model(config)
    weights = {"linear.weight": found.coef_, "linear.bias": found.intercept_}
    batch = {"inputs": jnp.asarray(x), "targets": jnp.asarray(y)}
    sums, _, grads = micro_step(model, load_tree(model.params, weights), {}, batch, jax.random.key(0))
    grads = flatten(grads)
    scale = np.linalg.norm(found.coef_) / C
    assert np.linalg.norm(C * grads["linear.weight"] + found.coef_) / C <= 1e-4 * scale
    assert np.linalg.norm(grads["linear.bias"]) <= 1e-4 * scale
    assert int(sums.correct) == (found.predict(x) == y).sum()
    nats = -np.log(found.predict_proba(x)[np.arange(len(x)), y]).sum()
    np.testing.assert_allclose(float(sums.nats), nats, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_training_ends_at_sklearns_optimum():
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 4))
    # Noisy labels: no plane separates them, so the optimum is finite without a penalty.
    y = (x @ [1.0, -2.0, 0.5, 0.0] + 0.3 + random.logistic(size=300) > 0).astype(int)
    found = fit(x, y, np.inf)
    best = -np.log(found.predict_proba(x)[np.arange(300), y]).mean()

    config = make_config("sigmoid", 4, 2, steps=300, batch_size=300)
    model = make_model(config)
    optimizer = make_optimizer(config, model.params)
    state = init_state(model, optimizer, {"linear.weight": np.zeros((1, 4)), "linear.bias": np.zeros(1)}, 0)
    batch = {"inputs": jnp.asarray(x), "targets": jnp.asarray(y)}
    step = jax.jit(lambda state: train_step(config, model, optimizer, state, jax.tree.map(lambda a: a[None], batch))[0])
    for _ in range(config.train.steps):
        state = step(state)
    loss = float(eval_step(model, state.params, {}, batch).nats) / 300
    assert -1e-9 < loss - best < 1e-7
    np.testing.assert_allclose(state.params["linear"]["weight"], found.coef_, atol=1e-3)
    np.testing.assert_allclose(state.params["linear"]["bias"], found.intercept_, atol=1e-3)
