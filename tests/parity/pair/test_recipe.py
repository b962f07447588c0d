"""A whole training recipe of somebody else's: right once, and wrong in each of its parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from parity import compare
from twinstep.errors import UserError

STEPS = 6
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(STEPS + 1, 5, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, (STEPS + 1, 5))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, y):
        return self.b(torch.tanh(self.a(x)))


def port(p, x, y):
    return jnp.tanh(x @ p["a"]["w"] + p["a"]["b"]) @ p["b"]["w"] + p["b"]["b"]


def convert(state):
    return {n: {"w": state[f"{n}.weight"].numpy().T, "b": state[f"{n}.bias"].numpy()} for n in ("a", "b")}


INPUTS = [X[STEPS], Y[STEPS]]
LOSSES = (
    lambda output, x, y: nn.functional.cross_entropy(output, y),
    lambda output, x, y: optax.softmax_cross_entropy_with_integer_labels(output, y).mean(),
)


# ------------------------------------------------------------------------------------------ the parts of both recipes
def torch_batches(step):
    return torch.from_numpy(X[step]), torch.from_numpy(Y[step])


def jax_batches(step):
    return X[step], Y[step]


def torch_schedule(optimizer):
    def factor(step):
        return (step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def jax_schedule(step, late=0):
    step = step + late
    decay = 0.5 * (1 + jnp.cos(jnp.pi * (step - 2) / (STEPS - 2)))
    return 1e-2 * jnp.where(step < 2, (step + 1) / 3, decay)


def torch_clip(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)


def jax_clip(gradients, most=0.5, eps=1e-6):
    norm = optax.tree.norm(gradients)
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, most / (norm + eps)), gradients)


def torch_metrics(output, x, y):
    right = (output.argmax(-1) == y).float()
    return {"accuracy": right.mean().item(), "loss": nn.functional.cross_entropy(output, y).item()}


def jax_metrics(output, x, y, mean=jnp.mean):
    right = (output.argmax(-1) == y).astype(jnp.float32)
    return {"accuracy": right.mean(), "loss": mean(optax.softmax_cross_entropy_with_integer_labels(output, y))}


def rate(step):
    return 1e-2 * ((step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2))))


def optimizers(schedule=jax_schedule, around=lambda optimizer: optimizer):
    return (
        lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1),
        around(optax.adamw(schedule, weight_decay=0.1)),
    )


def compare_recipe(**recipe):
    return compare(Classifier(), port, None, INPUTS, convert=convert, losses=LOSSES, **{"steps": STEPS, **recipe})


def compare_training(**changed):
    return compare_recipe(
        **{
            "optimizers": optimizers(),
            "batches": (torch_batches, jax_batches),
            "schedules": (torch_schedule, jax_schedule),
            "clip": (torch_clip, jax_clip),
            "metrics": (torch_metrics, jax_metrics),
            **changed,
        }
    )


def noted(result, words):
    return any(words in note for note in result.notes)


# ----------------------------------------------------------------------------------------------------- the whole of it
@pytest.mark.slow
def test_a_right_recipe_agrees_in_every_stage():
    result = compare_training()
    assert result.verdict == "agrees", result.sentence
    assert [name for name, stage in result.stages.items() if not stage.compared] == ["generation"]
    assert (result.stages["data"].compared, result.stages["schedule"].compared) == (2 * STEPS, STEPS)
    assert {t.tensor for t in result.tensors if t.stage == "evaluation"} == {"accuracy", "loss"}
    assert not noted(result, "Not compared")
    (curve,) = result.curves
    assert len(set(curve.port_loss)) == STEPS
    assert max(curve.free_error) <= 1e-14 < max(curve.free_budget) <= 1e-11
    assert 0 < max(curve.envelope) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        optimizers(lambda step: jax_schedule(step, late=1)),
        optimizers(around=lambda optimizer: optax.chain(optimizer, optax.clip_by_global_norm(0.01))),
    ],
    ids=["the schedule one step late", "clipping after the optimizer"],
)
def test_a_fault_within_the_optimizer_is_found_at_the_update(changed):
    first = compare_training(optimizers=changed, batches=None, metrics=None).first_divergence
    assert (first.stage, first.step) == ("update", 0)


@pytest.mark.slow
def test_a_fault_of_the_run_alone_is_found_in_the_trajectory():
    """Clipping that gets a step wrong only after the first, which only a run of the port's own meets."""
    drift = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda grads, count, params=None: (jax.tree.map(lambda g: g * (1 + 1e-6 * count), grads), count + 1),
    )
    result = compare_recipe(
        optimizers=(lambda parameters: torch.optim.SGD(parameters, 0.1), optax.sgd(0.1)),
        clip=(torch_clip, optax.chain(optax.stateless(lambda grads, params: jax_clip(grads)), drift)),
    )
    first = result.first_divergence
    assert (first.stage, first.step, result.stages["clip"].verdict) == ("trajectory", 1, "agrees")


@pytest.mark.slow
def test_of_a_long_run_ten_steps_are_compared_and_all_losses():
    plain = (lambda parameters: torch.optim.SGD(parameters, 0.1), optax.sgd(0.1))
    result = compare_recipe(optimizers=plain, steps=30)
    assert result.verdict == "agrees", result.sentence
    assert len(result.curves[0].steps) == 30
    assert result.stages["update"].compared == 10 * 4
    assert noted(result, "data, schedule, clip, evaluation")


class Added(nn.Module):
    """Two biases, added up."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.extra = nn.Linear(4, 3), nn.Parameter(torch.randn(3))

    def forward(self, x, y):
        return self.a(x) + self.extra


@pytest.mark.slow
def test_biases_that_a_port_adds_up_count_once_and_are_named():
    """Counted twice in the port's norm, the gradient of the sum would be clipped again."""
    module = Added()
    held = {name: x.detach().numpy() for name, x in module.named_parameters()}
    params = {"w": held["a.weight"].T, "b": held["a.bias"] + held["extra"]}
    result = compare(
        module,
        lambda p, x, y: x @ p["w"] + p["b"],
        params,
        INPUTS,
        losses=LOSSES,
        clip=(torch_clip, jax_clip),
        optimizers=(
            lambda parameters: torch.optim.SGD(parameters, 0.1),
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
        ),
    )
    assert noted(result, "no leaf holds them alone: extra, a.bias.")
    assert {result.stages[stage].verdict for stage in ("gradients", "clip", "update", "parameters")} == {"agrees"}
    assert {t.tensor for t in result.tensors if t.stage == "update"} == {"a.weight"}


class Table(nn.Module):
    """Numbers that torch's code makes in float32."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(1, 4) / 3, persistent=False)

    def forward(self, x, y):
        return self.a(x) * self.table


@pytest.mark.slow
def test_the_rounding_of_a_table_in_float32_is_known_in_the_run_too():
    def compare_table(third):
        module = Table()
        params = {"w": module.a.weight.detach().numpy().T, "b": module.a.bias.detach().numpy()}
        function = lambda p, x, y: (x @ p["w"] + p["b"]) * (jnp.arange(1, 4, dtype=jnp.float32) * third)
        adam = (lambda parameters: torch.optim.Adam(parameters, 1e-2), optax.adam(1e-2))
        return compare(module, function, params, INPUTS, losses=LOSSES, optimizers=adam)

    result = compare_table(1 / 3)
    assert result.verdict == "agrees", result.sentence
    loss = next(t for t in result.tensors if (t.stage, t.tensor) == ("trajectory", "loss"))
    assert max(loss.relative_l2) > 1e-11
    assert compare_table(0.3334).verdict == "diverges"


# ------------------------------------------------------------------------------------------------------ part by part
PARTS = {
    "batches": (torch_batches, jax_batches),
    "schedules": (rate, jax_schedule),
    "clip": (torch_clip, jax_clip),
    "metrics": (torch_metrics, jax_metrics),
}


def test_the_parts_of_a_recipe_are_compared_without_an_optimizer():
    right = compare_recipe(**PARTS)
    assert right.verdict == "agrees", right.sentence
    assert {right.stages[name].verdict for name in ("data", "schedule", "clip", "evaluation")} == {"agrees"}
    assert (right.stages["update"].verdict, right.steps) == ("unchecked", STEPS)
    wrong = {
        "batches": (torch_batches, lambda step: jax_batches((step + 1) % STEPS)),
        "schedules": (rate, lambda step: jax_schedule(step, late=1)),
        "clip": (torch_clip, optax.clip(0.5)),
        "metrics": (torch_metrics, lambda *args: jax_metrics(*args, mean=jnp.sum)),
    }
    stages = compare_recipe(**wrong).stages
    assert [name for name, stage in stages.items() if stage.diverged] == ["data", "schedule", "clip", "evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "tensor", "words"),
    [
        (jax_batches, None, ""),
        ((jax_batches(step) for step in range(STEPS)), None, ""),
        (lambda step: (X[step] * np.float32(1 + 1e-7), Y[step]), None, ""),
        (lambda step: jax_batches((step + 1) % STEPS), "0", "it is torch's batch of step 1"),
        (lambda step: (X[step] / 2, Y[step]), "0", ""),
        (lambda step: (X[step], (Y[step] + 1) % 3), "1", ""),
        (lambda step: X[99], "batches", "IndexError: index 99"),
    ],
)
def test_batches_are_compared_by_step_and_array(theirs, tensor, words):
    result = compare_recipe(batches=(torch_batches, theirs))
    assert_first(result, tensor and "data", tensor, words)


def assert_first(result, stage, tensor, words=""):
    first = result.first_divergence
    assert (first and (first.stage, first.tensor)) == (stage and (stage, tensor)), result.sentence
    assert words in (first.note if first else "")


@pytest.mark.slow
def test_a_port_gets_its_batches_in_its_own_layout():
    layout = lambda p, x, y: port(p, x.T, y)
    batches = (torch_batches, lambda step: (X[step].T, Y[step]))
    options = {"convert": convert, "losses": LOSSES, "batches": batches, "jax_inputs": [X[STEPS].T, Y[STEPS]]}
    result = compare(Classifier(), layout, None, INPUTS, steps=2, **options)
    assert result.stages["data"].verdict == result.verdict == "agrees", result.sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "step", "words"),
    [
        (jax_schedule, None, ""),
        (rate, None, ""),
        (lambda step: jax_schedule(step, late=1), 0, "torch's of one step later"),
        (lambda step: jnp.maximum(jax_schedule(step), 2e-3), 5, ""),
        (lambda step: 2 * jax_schedule(step), 0, ""),
    ],
)
def test_schedules_are_compared_at_every_step(theirs, step, words):
    result = compare_recipe(schedules=(rate, theirs))
    assert_first(result, None if step is None else "schedule", "learning_rate")
    assert step is None or result.first_divergence.step == step
    assert not words or noted(result, words)


@pytest.mark.slow
def test_a_rate_that_never_changes_is_named():
    assert noted(compare_recipe(schedules=(lambda step: 0.1, optax.constant_schedule(0.1))), "same at all 6 steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "tensor", "words"),
    [
        (jax_clip, None, "changes 10 times them: both"),
        (optax.clip(0.5), "a.bias (gradients times 10)", "both"),
        (lambda grads: jax_clip(grads, 1.0), "a.bias (gradients times 10)", "both"),
        (lambda grads: jax.tree.map(lambda g: jax_clip([g])[0], grads), "a.bias (gradients times 10)", "both"),
        (optax.clip_by_global_norm(0.5), "a.bias (gradients times 10)", "just by the 1e-6"),
        (lambda grads: jax.tree.map(lambda g: 0.5 * g, grads), "a.bias", "both"),
    ],
    ids=["right", "by value", "another limit", "array by array", "optax's", "not at all"],
)
def test_clipping_is_compared_where_it_is_active_and_where_it_is_not(theirs, tensor, words):
    batch = (lambda step: torch_batches(0), lambda step: jax_batches(0))
    result = compare_recipe(clip=(torch_clip, theirs), batches=batch)
    assert_first(result, tensor and "clip", tensor)
    assert noted(result, words)
    assert noted(result, "Not compared, since nothing of it was handed in (schedules=, metrics=): schedule, evaluation")


def without_trace(output, x, y):
    return {name: float(x) for name, x in jax_metrics(output, x, y).items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "tensor", "words"),
    [
        (jax_metrics, None, ""),
        (without_trace, None, ""),
        (lambda *args: jax_metrics(*args, mean=jnp.sum), "loss", ""),
        (
            lambda output, x, y: {**jax_metrics(output, x, y), "accuracy": (output.argmax(0)[:3] == 1).mean()},
            "accuracy",
            "",
        ),
        (lambda output, x, y: {"loss": jax_metrics(output, x, y)["loss"]}, "accuracy", "not there in JAX"),
        (lambda output, x, y: output.nothing, "metrics", "AttributeError"),
    ],
)
def test_metrics_are_compared_from_torchs_output(theirs, tensor, words):
    result = compare_recipe(metrics=(torch_metrics, theirs))
    assert_first(result, tensor and "evaluation", tensor, words)


@pytest.mark.slow
def test_a_model_that_is_wrong_is_no_fault_of_its_metrics():
    wrong = lambda p, x, y: 2 * port(p, x, y)
    metrics = (torch_metrics, jax_metrics)
    result = compare(Classifier(), wrong, None, INPUTS, convert=convert, losses=LOSSES, metrics=metrics)
    assert (result.verdict, result.stages["evaluation"].verdict) == ("diverges", "agrees")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"steps": 201}, "steps is 201; pass a number from 1 to 200"),
        ({"clip": torch_clip}, "clip is of type function; pass a pair: torch's and JAX's"),
        ({"clip": (torch_clip, 0.5)}, r"clip\[1\] is of type float; pass an optax transformation, or"),
        ({"clip": (torch_clip, jax_clip), "dtype": "float32"}, "clip is compared in float64 only"),
        ({"clip": (lambda ps: [p.grad / 2 for p in ps], jax_clip)}, r"clip\[0\] changes no gradient, however large"),
        ({"clip": (lambda ps: ps.nothing, jax_clip)}, r"clip\[0\] raises AttributeError: .*test_recipe\.py:\d+"),
        ({"optimizers": (torch.optim.SGD, lambda grads: grads)}, r"optimizers\[1\] is of type function; pass an optax"),
        ({"optimizers": (lambda ps: 1, optax.sgd(1.0))}, r"optimizers\[0\] returns int"),
        ({"optimizers": (lambda ps: ps.nothing, optax.sgd(1.0))}, r"optimizers\[0\] raises AttributeError"),
        ({"batches": (torch_batches, 3)}, r"batches\[1\] is of type int; pass those of the port's run"),
        ({"batches": ([torch_batches(0)] * 4, jax_batches)}, r"batches\[0\] ends after 4 batches, and steps is 6"),
        ({"batches": (lambda step: X[99], jax_batches)}, r"batches\[0\] raises IndexError"),
        ({"batches": (lambda step: (X[step],), jax_batches)}, r"batches\[0\] of step 0 has 1 arguments, and inputs 2"),
        (
            {"batches": (lambda step: {"x": X[0], "y": Y[0]}, jax_batches)},
            "an array at 'x' where inputs has an array at",
        ),
        ({"batches": (torch_batches, lambda step: (X[0] * np.nan, Y[0]))}, r"batches\[1\] of step 0\[0\] is nan"),
        ({"schedules": (torch_schedule, rate)}, "a scheduler needs its optimizer: pass optimizers=, too"),
        ({"schedules": (rate, [])}, r"schedules\[1\] is of type list; pass an optax schedule"),
        ({"schedules": (rate, lambda step: X[0])}, r"schedules\[1\] of step 0 is an array of shape \(5, 4\)"),
        (
            {"metrics": (lambda output, x, y: output, jax_metrics)},
            r"metrics\[0\]'s 'metric' is an array of shape \(5, 3\)",
        ),
        ({"metrics": (lambda output, x, y: output.nothing, jax_metrics)}, r"metrics\[0\] raises AttributeError"),
        ({"metrics": (torch_metrics, lambda output, x, y: None)}, r"metrics\[1\]'s 'metric' is of type NoneType"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused(recipe, words):
    with pytest.raises(UserError, match=words):
        compare_recipe(**recipe)


def test_a_scheduler_that_needs_the_run_is_refused():
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(UserError, match="makes a ReduceLROnPlateau, whose rates depend on the run"):
        compare_recipe(optimizers=optimizers(), schedules=(plateau, rate))


def test_batches_of_other_shapes_need_a_loss():
    batches = (lambda step: (X[step][:4], Y[step][:4]),) * 2
    with pytest.raises(UserError, match=r"step 0 has arrays of the shapes \[\(4, 4\), \(4,\)\], .*; pass losses="):
        compare(Classifier(), port, None, INPUTS, convert=convert, batches=batches)
