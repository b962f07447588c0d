"""`parity.compare`: any torch module beside any JAX port of it, stage by stage."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from parity.broken import PortError, described
from parity.entries import GIVEN
from parity.environment import environment
from parity.exercised import source_files, watch_lines
from parity.ledger import Ledger
from parity.lines.line import Lines
from parity.pair import notes
from parity.pair.batches import with_batches
from parity.pair.carrying import Convert, compare_weights
from parity.pair.equals import told_apart
from parity.pair.inputs import read_inputs
from parity.pair.lines import wrong_lines
from parity.pair.loss import Output, jax_projection, torch_projection
from parity.pair.masks import fitting
from parity.pair.metrics import compare_metrics
from parity.pair.models import JaxModel, Pass
from parity.pair.recipe import Batches, Clip, Metrics, Optimizers, Recipe, Schedules, read_recipe
from parity.pair.schedules import compare_schedules
from parity.pair.setup import (
    AUTO,
    Rules,
    carry,
    one_by_one,
    pair_layers,
    pair_outputs,
    projection,
    read_port,
)
from parity.pair.stages import NEEDED, Compared, check_dtype, compare_pass
from parity.pair.torch_model import TorchModel, arrays_of, move_weights, of_tensors, own_copy, state_of
from parity.pair.update_lines import update_lines
from parity.pair.updates import Updates
from parity.pair.written import judged_pass
from parity.platforms import jax_device, torch_device
from parity.request import Platform
from parity.result import Curve, Result

SEEDS = 8  # in float32 and bfloat16: the weights as given, and moved a little at random

Losses = tuple[Callable[..., torch.Tensor], Callable[..., jax.Array]]


def compare(
    module: torch.nn.Module,
    function: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    convert: Convert | None = None,
    weights: Rules = AUTO,
    layers: Rules = AUTO,
    dtype: str = "float64",
    jax_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    outputs: Mapping[str, str] | None = None,
    buffers: Any = None,
    where: np.ndarray | None = None,
    losses: Losses | None = None,
    optimizers: Optimizers | None = None,
    steps: int = 3,
    batches: Batches | None = None,
    schedules: Schedules | None = None,
    clip: Clip | None = None,
    metrics: Metrics | None = None,
    platform: Platform = "cpu",
) -> Result:
    """Is `function` a right port of `module`? `result.first_divergence` names the first stage and tensor that differ.

    module: in the mode (train or eval) in which it is to be compared; it is copied, and left as it is. What it drops at
    random, the port drops too, if it draws as many masks, of the same shapes, by `jax.random.bernoulli`.
    `torch.compile` and `DataParallel` around it are taken off.
    function: `function(params, *inputs)`, or with keywords where `inputs` is a dict; with `buffers` it takes
    (params, buffers, ...) and returns (output, buffers). An output is an array, or any tuple, dict or dataclass.
    params: the port's parameters, already carried over: any pytree; leaves that are no arrays are passed on. A leaf's
    name is its path, joined by dots. None where `convert` makes them.
    inputs: the module's arguments, a sequence or a dict of keywords. jax_inputs: the port's, where they differ.
    convert: `convert(module.state_dict())` returns the params. It is also called with other numbers, all different, by
    which equal arrays are told apart.
    weights: which torch array feeds which leaf: found by the numbers, or rules from the names in `state_dict()`.
    layers: which of torch's modules belongs to which tag (`jax.ad_checkpoint.checkpoint_name`; `parity.adapters` tag
    those of Linen, NNX and other modules): found by their names and their weights, or rules. Tags add detail; output,
    loss and gradients are compared without any.
    dtype: "float64": both in true float64, whatever their code casts to. "float32" or "bfloat16": both as they are
    written, judged by the ratio of their errors to the float64 reference.
    outputs: {torch's path: the port's path}, "" for a bare array; by equal paths when left out.
    buffers: running statistics, a pytree; compared as they are given and after the pass.
    where: a boolean mask over the leading axes of torch's output: rows that count (False for padding).
    losses: functions (output, *inputs) -> scalar of each framework; the outputs times fixed random numbers, summed,
    when left out.
    optimizers: a function from torch parameters to a torch optimizer, and an optax transformation, in float64. With
    them, updates and moments are compared over `steps` steps (200 at most) from torch's gradients and parameters, and
    two free runs of as many steps, whose budget is how far torch's run is from itself when it begins one ulp away. Of
    more than ten steps ten are compared in all, of the others the losses.

    The rest of a training recipe, each a pair (torch's, JAX's):
    batches: what both data pipelines yield at each step: iterables, or functions of the step. A batch is as `inputs`
    (or `jax_inputs`) are, and each step runs on its own. Integers must be equal; floats may differ by a few roundings.
    schedules: a function from torch's optimizer to its scheduler, or from a step to a rate; and an optax schedule, from
    a step to a rate, or a list of them, one for each parameter group. The optax transformation holds its own.
    clip: a function that clips the `.grad` of a list of parameters in place, and an optax transformation or a function
    from gradients to gradients. It comes before the optimizer, whose transformation need not hold it again. Compared
    from torch's gradients, also scaled so that clipping changes them, and so that it does not.
    metrics: functions (output, *inputs) -> a number, or a dict of them. The port's is given torch's output.

    platform: where JAX runs, "cpu", "cuda" or "tpu". The copy of the module and its inputs go to the GPU where that is
    "cuda" and torch sees one, else to the CPU; a loss of yours finds both on that device.

    Of `data`, `schedule`, `clip` and `evaluation`, what is not handed in is not compared, and named in the notes. What
    JAX's part of anything raises is a divergence at the stage that could not be judged, and ends the comparison. Raises
    UserError for bad input: names that do not match up, inputs that are empty or not finite, a platform that JAX does
    not see, and whatever torch's part of anything raises.
    """
    started = time.monotonic()
    check_dtype(dtype)
    recipe = read_recipe(Recipe(optimizers, batches, schedules, clip, metrics, steps), dtype)
    wide, ledger, said = dtype == "float64", Ledger(dtype), list[str]()
    wrong: Lines | None = None
    seeds = 1 if wide else SEEDS
    jax_side, torch_side = jax_device(platform), torch_device(platform)
    with jax.enable_x64(wide), jax.default_device(jax_side):
        original = own_copy(module, torch_side)
        read = read_inputs(inputs, "inputs")
        port_read = read if jax_inputs is None else read_inputs(jax_inputs, "jax_inputs")
        start, of_arrays = state_of(original), of_tensors(convert, torch_side)
        held = read_port(params, of_arrays, start, buffers)
        carried = carry(weights, of_arrays, start, held)
        compare_weights(ledger, carried, start.arrays, held.arrays)

        chosen: list[Output] = []  # known once the shapes of the outputs are
        torch_loss, jax_loss = losses or (projection(torch_projection, chosen), projection(jax_projection, chosen))

        def fresh() -> TorchModel:
            return TorchModel(own_copy(original, torch_side), torch_side, read, torch_loss, wide=True)

        truth = fresh()
        reference = truth if wide else TorchModel(original, torch_side, read, torch_loss, wide=False)
        port = JaxModel(function, held.params.build, held.buffers and held.buffers.build, port_read, jax_loss, wide)
        # A sum that was made in float32 is made again in float64.
        given = carried.leaves(arrays_of(reference.module), held.arrays) if wide else held.arrays
        leaves, state = held.apart(port.ready(given))
        with watch_lines(source_files(function)) as lines:
            ours: Pass | None = None
            curves: list[Curve] = []
            try:
                recipe = with_batches(ledger, recipe, read, port_read, losses is not None, said)
                compare_schedules(ledger, recipe, original, said)
                ledger.now("activations", "function")
                chosen += pair_outputs(reference.outputs(), port, leaves, state, outputs, where)
                ours = reference.run()
                port.masks = fitting(ledger, ours.masks, port.draws(leaves, state) if ours.masks else [], said)
                theirs = port.run(leaves, state)
                theirs = one_by_one(theirs, layers, ours)
                carried = told_apart(carried, start.arrays, ours.param_gradients, theirs.param_gradients)
                what = Compared(chosen, pair_layers(layers, ours, theirs, carried), carried, where, losses is None)
                written = (reference.as_written, lambda: port.as_written(leaves, state)) if wide else None
                passed, what = judged_pass(Ledger(dtype), what, ours, theirs, None if wide else truth.run(), written)
                ledger.entries |= passed.entries
                if wide:
                    wrong = searched(said, lambda: wrong_lines(ledger.judge(), what, reference, port, leaves, state))
                said += notes.left_out(what, ours, theirs)
                for seed in range(1, seeds):
                    moved = move_weights(reference, truth, seed)
                    theirs = one_by_one(
                        port.run(*held.apart(port.ready(carried.leaves(moved, held.arrays)))), layers, ours
                    )
                    compare_pass(ledger, what, reference.run(), theirs, truth.run())
                if recipe.given:
                    trained = list(ours.param_gradients)
                    updates = Updates(ledger, recipe, fresh, port, what, trained, leaves, state, said)
                    curves = updates.compare()
                    wrong = wrong or searched(said, lambda: update_lines(updates))
                    compare_metrics(ledger, recipe, fresh(), port, chosen, leaves, state)
            except PortError as error:
                ledger.refuse_here(GIVEN, str(error))
        stages, tensors, first = ledger.judge()
        said += notes.of_rounding(tensors)
        said += notes.of_recipe(recipe)
        said = [*notes.interval(first, tensors, ours), *carried.doubts, *said, *notes.of_dropout(original, port.masks)]
        said += [
            *notes.of_casts(truth.casts, port.casts),
            *notes.of_narrow(port.narrow),
            *notes.lines_left_out(lines, function),
        ]
        return Result(
            model=type(original).__name__,
            dtype=dtype,
            steps=steps if recipe.given else 1,
            seed=0,
            seeds=seeds,
            devices=1,
            stages=stages,
            tensors=tensors,
            curves=curves,
            first_divergence=first,
            needed=list(NEEDED),
            lines=wrong,
            notes=said,
            environment=environment(platform, [jax_side], torch_side),
            seconds=time.monotonic() - started,
        )


def searched(notes: list[str], search: Callable[[], Lines | None]) -> Lines | None:
    """What the search finds; where it fails, a note: the verdict stands without."""
    try:
        return search()
    except Exception as error:
        notes.append(f"The wrong lines could not be looked for: {described(error)}.")
        return None
