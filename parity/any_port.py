"""`parity.compare`: any torch module beside any JAX port of it, stage by stage, in float64."""

import copy
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.ad_checkpoint import checkpoint_name

from jax_impl.tree import flatten, unflatten
from parity.broken import PortError, of_port
from parity.capture import JaxPass, TorchPass, capture_jax, capture_torch, to_numpy
from parity.entries import GIVEN, Key
from parity.environment import environment
from parity.exercised import Lines, not_run, source_files, watch_lines
from parity.ledger import Ledger
from parity.platforms import jax_device, torch_device
from parity.request import Platform
from parity.result import Result
from parity.scan_names import by_layer
from parity.stages import backwards
from parity.weights import Rule, Target, map_names, transpose
from twinstep.errors import UserError

OUTPUT = "output"  # the name of what the whole model returns, on both sides
IDENTITY = (Rule(r".+", r"\g<0>"),)

TorchOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class Pair(NamedTuple):
    """The two models, and the rules that map the names of one to those of the other."""

    module: torch.nn.Module
    device: torch.device  # the module's
    function: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    jax_inputs: tuple[np.ndarray, ...]
    torch_loss: Callable[..., torch.Tensor]
    jax_loss: Callable[..., jax.Array]
    weights: dict[str, Target]
    layers: Sequence[Rule]


def compare(
    module: torch.nn.Module,
    function: Callable[..., Any],
    params: Any,
    inputs: Sequence[np.ndarray],
    *,
    weights: Sequence[Rule] = IDENTITY,
    layers: Sequence[Rule] = IDENTITY,
    jax_inputs: Sequence[np.ndarray] | None = None,
    losses: tuple[Callable[..., torch.Tensor], Callable[..., jax.Array]] | None = None,
    optimizers: tuple[TorchOptimizer, optax.GradientTransformation] | None = None,
    steps: int = 3,
    platform: Platform = "cpu",
) -> Result:
    """Is `function` a right port of `module`? `result.first_divergence` names the first stage and tensor that differ.

    module: in the mode (train or eval) in which it is to be compared; it is copied, and left as it is.
    function: `function(params, *inputs)` returns an array. The layers that are compared are those that it tags with
    `jax.ad_checkpoint.checkpoint_name`; `parity.adapters` tags those of Linen and NNX modules.
    params: nested dicts of arrays with string keys; a leaf's name is its keys joined by dots.
    inputs: NumPy arrays, the module's arguments. jax_inputs: the function's, where its layout is another.
    weights: rules from the names in `module.state_dict()` to the leaves of `params`, with the permutation of the axes;
    every torch name matches one rule, every leaf is fed once. layers: likewise from the names of torch's modules to
    tags, with the transpose from torch's activation to JAX's ("output" is the model's own); a module whose tag does
    not exist is left out, and listed in the result's notes.
    losses: functions (output, *inputs) -> scalar of each framework; the output times fixed random numbers, summed,
    when left out.
    optimizers: a function from torch parameters to a torch optimizer, and an optax transformation. With them, updates
    are compared over `steps` steps from torch's gradients and parameters, and two free runs of as many steps.
    platform: where JAX runs, "cpu", "cuda" or "tpu". The copy of the module and its inputs go to the GPU where that is
    "cuda" and torch sees one, else to the CPU; a loss of yours finds both on that device.

    All arithmetic is float64, whatever the arrays are: rounding and error cannot be confused. `data`, `schedule`,
    `clip` and `evaluation` are not compared. What the function or the transformation raises is a divergence at the
    stage that could not be judged, and ends the comparison. Raises UserError for names that do not match up, naming
    them, and for a platform that JAX does not see.
    """
    started = time.monotonic()
    ledger = Ledger("float64")
    jax_side, torch_side = jax_device(platform), torch_device(platform)
    with jax.enable_x64(True), jax.default_device(jax_side):
        module = copy.deepcopy(module).to(torch_side)
        arrays = {name: to_numpy(tensor) for name, tensor in module.state_dict().items()}
        leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
        targets = map_names(weights, arrays, leaves)
        compare_leaves(ledger, targets, arrays, leaves)

        reference = module.double()
        both = tuple(map(wide, inputs)), tuple(map(wide, jax_inputs or inputs))
        pair = Pair(reference, torch_side, function, *both, *(losses or projections(layers)), targets, layers)
        start = unflatten({name: jnp.asarray(wide(leaf)) for name, leaf in leaves.items()})
        run, notes = jitted_pass(pair), list[str]()
        with watch_lines(source_files(function)) as lines:
            try:
                ledger.now("activations", "function")
                notes = compare_passes(ledger, pair, run(start))
                if optimizers is not None:
                    compare_updates(ledger, pair, run, start, optimizers, steps)
            except PortError as error:
                ledger.refuse_here(GIVEN, str(error))
        stages, tensors, first = ledger.judge()
        return Result(
            model=type(module).__name__,
            dtype="float64",
            steps=steps if optimizers else 1,
            seed=0,
            seeds=1,
            devices=1,
            stages=stages,
            tensors=tensors,
            curves=[],
            first_divergence=first,
            notes=[*notes, *lines_left_out(lines)],
            environment=environment(platform, [jax_side], torch_side),
            seconds=time.monotonic() - started,
        )


def lines_left_out(lines: Lines) -> list[str]:
    """A note on the lines that did not run of functions that did, where the port's file is known."""
    return [
        f"Lines of {missing.function} in {missing.file} that did not run, and were not compared: "
        f"{', '.join(map(str, missing.lines))}."
        for path in lines.statements
        for missing in not_run(lines, path.parent)
        if not missing.whole
    ]


def wide(x: np.ndarray) -> np.ndarray:
    """Floating point as float64, all else as it is."""
    x = np.asarray(x)
    return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def projections(layers: Sequence[Rule]) -> tuple[Callable[..., torch.Tensor], Callable[..., jax.Array]]:
    """A loss for a model without one: every element of the output counts, each with a weight of its own."""
    axes = next((rule.axes for rule in layers if rule.torch == OUTPUT), ())

    def numbers(shape: Sequence[int]) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(tuple(shape)) / np.sqrt(np.prod(shape))

    def in_torch(output: torch.Tensor, *inputs: Any) -> torch.Tensor:
        return (output * torch.from_numpy(numbers(output.shape)).to(output.device)).sum()

    def in_jax(output: jax.Array, *inputs: Any) -> jax.Array:
        back = output.transpose(tuple(np.argsort(axes))) if axes else output
        return jnp.sum(back * numbers(back.shape))

    return in_torch, in_jax


def compare_leaves(ledger: Ledger, targets: dict[str, Target], arrays: dict, leaves: dict) -> None:
    """The weights as they are given: shape, type and every value after the rule's transpose."""
    for name, (leaf, axes) in targets.items():
        ours, theirs = transpose(name, arrays[name], axes), leaves[leaf]
        if ours.dtype != theirs.dtype:
            ledger.refuse(Key("weights", name, GIVEN), 0, f"{ours.dtype} in torch, {theirs.dtype} in JAX")
        else:
            ledger.enter(Key("weights", name, GIVEN), 0, ours, theirs)


def torch_pass(pair: Pair) -> tuple[np.ndarray, TorchPass, dict[str, np.ndarray]]:
    """Loss, activations with their gradients, and the gradient of every parameter."""
    tensors = tuple(torch.from_numpy(x).to(pair.device) for x in pair.inputs)
    pair.module.zero_grad(set_to_none=True)
    with capture_torch(pair.module, OUTPUT) as passes:
        loss = pair.torch_loss(pair.module(*tensors), *tensors)
        loss.backward()
    gradients = {name: to_numpy(p.grad) for name, p in pair.module.named_parameters() if p.grad is not None}
    return to_numpy(loss), passes[0], gradients


def jitted_pass(pair: Pair) -> Callable[[Any], JaxPass]:
    """The same in JAX, as a function of the parameters."""

    def loss(params: Any, *inputs: Any) -> tuple[jax.Array, None]:
        output = checkpoint_name(pair.function(params, *inputs), OUTPUT)
        return pair.jax_loss(output, *inputs), None

    jitted = jax.jit(lambda params, *inputs: capture_jax(loss, params, *inputs))
    return of_port()(lambda params: jitted(params, *pair.jax_inputs))


def tags_of(rules: Sequence[Rule], name: str) -> list[Target]:
    """The tags that the rules give to one of torch's modules, the first that matches first."""
    plain, *number = name.partition(" #")  # " #2": the layer's second call
    matches = [(rule, match) for rule in rules if rule.jax and (match := re.fullmatch(rule.torch, plain))]
    own = [Target(OUTPUT, ())] if name == OUTPUT else []
    return [Target(match.expand(rule.jax) + "".join(number), rule.axes) for rule, match in matches if rule.jax] + own


def layer_tags(rules: Sequence[Rule], ours: Iterable[str], theirs: Iterable[str]) -> dict[str, Target]:
    """torch's module -> tag, for the modules whose tag is there. Raises UserError if only the whole model's is."""
    found = {name: [target for target in tags_of(rules, name) if target.jax in theirs] for name in ours}
    tags = {name: targets[0] for name, targets in found.items() if targets}
    if set(tags) == {OUTPUT} and len(found) > 1:
        raise UserError(
            f"no layer of torch ({', '.join(list(ours)[:3])}, ...) has its tag in JAX "
            f"({', '.join(list(theirs)[:3])}, ...); say in layers= which is which"
        )
    return tags


def compare_passes(ledger: Ledger, pair: Pair, found: JaxPass) -> list[str]:
    """Activations, loss and gradients; returns notes on the layers that have no counterpart."""
    loss, ours, gradients = torch_pass(pair)
    wanted = {target.jax for name in ours.activations for target in tags_of(pair.layers, name)}
    found = found._replace(activations=by_layer(wanted, found.activations), gradients=by_layer(wanted, found.gradients))
    tags = layer_tags(pair.layers, ours.activations, found.activations)
    for name, (tag, axes) in tags.items():
        activation = transpose(name, ours.activations[name], axes)
        ledger.enter(Key("activations", name, GIVEN), 0, activation, found.activations[tag])
    ledger.enter(Key("loss", "loss", GIVEN), 0, loss, found.loss)
    for name in backwards(list(tags)):
        tag, axes = tags[name]
        if name in ours.gradients and tag in found.gradients:
            gradient = transpose(name, ours.gradients[name], axes)
            ledger.enter(Key("gradients", f"d {name}", GIVEN, "activation"), 0, gradient, found.gradients[tag])
    compare_named(ledger, "gradients", 0, carried(pair, gradients), flatten(found.param_gradients))
    missing = [name for name in ours.activations if name not in tags]
    return [f"Layers of torch without a tag in JAX, not compared: {', '.join(missing)}."] if missing else []


def carried(pair: Pair, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torch arrays under JAX's names and in JAX's layout; those without a leaf are left out."""
    targets = {name: pair.weights[name] for name in arrays if name in pair.weights}
    return {target.jax: transpose(name, arrays[name], target.axes) for name, target in targets.items()}


def compare_named(ledger: Ledger, stage: str, step: int, ours: dict, theirs: dict, unit: str = "parameter") -> None:
    """Enter every array of `ours` beside the one of the same name in `theirs`."""
    for name, array in ours.items():
        ledger.enter(Key(stage, name, GIVEN, unit), step, array, theirs.get(name))


def compare_updates(
    ledger: Ledger,
    pair: Pair,
    run: Callable[[Any], JaxPass],
    params: Any,
    optimizers: tuple[TorchOptimizer, optax.GradientTransformation],
    steps: int,
) -> None:
    """Updates from torch's gradients and parameters; beside them a run of JAX's own."""
    optimizer, transformation = optimizers[0](pair.module.parameters()), optimizers[1]
    ledger.now("update", "optimizer")
    step_fn = of_port()(jax.jit(lambda grads, state, params: transformation.update(grads, state, params)))
    state = free_state = of_port()(transformation.init)(params)
    free = params
    for step in range(steps):
        ledger.now("update", "optimizer", step)
        before = carried(pair, {name: to_numpy(p) for name, p in pair.module.named_parameters()})
        loss, _, gradients = torch_pass(pair)
        optimizer.step()
        after = carried(pair, {name: to_numpy(p) for name, p in pair.module.named_parameters()})

        at = unflatten({**flatten(params), **before})
        still = {name: np.zeros_like(leaf) for name, leaf in flatten(params).items()}
        updates, state = step_fn(unflatten({**still, **carried(pair, gradients)}), state, at)
        moved = {name: after[name] - before[name] for name in after}
        compare_named(ledger, "update", step, moved, flatten(updates))
        compare_named(ledger, "parameters", step, after, flatten(optax.apply_updates(at, updates)))

        found = run(free)
        updates, free_state = step_fn(found.param_gradients, free_state, free)
        free = optax.apply_updates(free, updates)
        ledger.enter(Key("trajectory", "loss", GIVEN, "loss"), step, loss, found.loss)
        compare_named(ledger, "trajectory", step, after, flatten(free))
