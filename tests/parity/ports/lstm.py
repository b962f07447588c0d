"""LSTM of two layers with a linear head: gates in another order, biases summed, forget gate + 1; dm-haiku."""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch

from .bug import Bug

F, D, V, L = 12, 16, 5, 2
B, T = 3, 8
GATES = (0, 2, 1, 3)  # torch has i, f, g, o; Haiku i, g, f, o
FORGET_BIAS = 1.0  # Haiku adds it


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(F, D, num_layers=L, batch_first=True)
        self.head = torch.nn.Linear(D, V)

    def forward(self, x_BTF):
        y_BTD, _ = self.lstm(x_BTF)
        return self.head(y_BTD[:, -1])


def torch_side(seed: int = 0) -> tuple[torch.nn.Module, list]:
    torch.manual_seed(seed)
    module = Classifier().eval()
    return module, [np.random.default_rng(seed).standard_normal((B, T, F)).astype(np.float32)]


def cell(name):
    return hk.LSTM(D, name=name)


def unroll(core, x_BTF):
    y_BTD, _ = hk.dynamic_unroll(core, x_BTF, core.initial_state(x_BTF.shape[0]), time_major=False)
    return y_BTD


def last(y_BTD):
    return y_BTD[:, -1]


def classifier(x_BTF):
    core = hk.DeepRNN([cell(f"layer_{i}") for i in range(L)])
    return hk.Linear(V, name="head")(last(unroll(core, x_BTF)))


def reorder(w):
    parts = np.split(w, 4)
    return np.concatenate([parts[i] for i in GATES])


def sum_biases(input_bias, hidden_bias):
    return input_bias + hidden_bias


def convert(state_dict: dict) -> dict:
    w = {name: x.detach().numpy() for name, x in state_dict.items()}
    params = {"head": {"w": w["head.weight"].T, "b": w["head.bias"]}}
    for i in range(L):
        kernel = np.concatenate([w[f"lstm.weight_ih_l{i}"], w[f"lstm.weight_hh_l{i}"]], axis=1)
        bias = reorder(sum_biases(w[f"lstm.bias_ih_l{i}"], w[f"lstm.bias_hh_l{i}"]))
        bias[2 * D : 3 * D] -= FORGET_BIAS
        params[f"layer_{i}/linear"] = {"w": reorder(kernel).T, "b": bias}
    return params


def jax_side(state_dict: dict) -> tuple[Callable, dict]:
    return hk.without_apply_rng(hk.transform(classifier)).apply, convert(state_dict)


OPTIONS = {"convert": convert}  # it adds a constant, which the values alone do not tell


class OutputNotSquashed(hk.LSTM):
    def __call__(self, x_BF, state):
        i, g, f, o = jnp.split(hk.Linear(4 * D)(jnp.concatenate([x_BF, state.hidden], axis=-1)), 4, axis=-1)
        c_BD = jax.nn.sigmoid(f + 1) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        h_BD = jax.nn.sigmoid(o) * c_BD
        return h_BD, hk.LSTMState(h_BD, c_BD)


def over_the_batch(core, x_BTF):
    return hk.dynamic_unroll(core, x_BTF, core.initial_state(x_BTF.shape[1]))[0]


def backward_in_time(core, x_BTF):
    state = core.initial_state(x_BTF.shape[0])
    return hk.dynamic_unroll(core, x_BTF, state, time_major=False, reverse=True)[0]


def one_step_of_gradient(core, x_BTF):
    def step(x_BF, state):
        return core(x_BF, jax.lax.stop_gradient(state))

    return hk.dynamic_unroll(step, x_BTF, core.initial_state(x_BTF.shape[0]), time_major=False)[0]


LSTM = ("lstm.py:Classifier.forward: y_BTD, _ = self.lstm(x_BTF)",)
UNROLL = ("lstm.py:unroll: y_BTD, _ = hk.dynamic_unroll(",)  # uses the weights that `convert` makes

# Those of `convert` must be planted before `jax_side` is called.
BUGS = (
    Bug("gates in torch's order", "GATES", (0, 1, 2, 3), "lstm", LSTM, jax=UNROLL, stage="weights"),
    Bug("one added to the forget gate", "FORGET_BIAS", 0.0, "lstm", LSTM, jax=UNROLL, stage="weights"),
    Bug(
        "the hidden bias left out", "sum_biases", lambda input_bias, hidden_bias: input_bias, "lstm",
        LSTM, jax=UNROLL, stage="weights",
    ),
    Bug(
        "no tanh at the output", "cell", lambda name: OutputNotSquashed(D, name=name), "lstm",
        LSTM, jax=("lstm.py:OutputNotSquashed.__call__: h_BD = ",),
    ),
    Bug("the batch taken for time", "unroll", over_the_batch, "lstm", LSTM),
    Bug("time backward", "unroll", backward_in_time, "lstm", LSTM),
    Bug(
        "the mean over time for the last", "last", lambda y_BTD: y_BTD.mean(1), "head",
        ("lstm.py:Classifier.forward: return self.head(y_BTD[:, -1])",),
    ),
    # changes gradients only
    Bug(
        "no gradient from one step to the one before", "unroll", one_step_of_gradient, "output",
        LSTM, stage="gradients",
    ),
)  # fmt: skip
