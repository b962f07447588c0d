"""`parity.compare`: any torch module beside any JAX port of it, stage by stage."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from parity.broken import PortError
from parity.entries import GIVEN
from parity.environment import environment
from parity.exercised import source_files, watch_lines
from parity.ledger import Ledger
from parity.lines.line import Lines
from parity.pair import notes
from parity.pair.carrying import Convert, compare_weights
from parity.pair.equals import told_apart
from parity.pair.inputs import read_inputs
from parity.pair.lines import wrong_lines
from parity.pair.loss import Output, jax_projection, torch_projection
from parity.pair.models import JaxModel, Pass, TorchModel, move_weights, own_copy
from parity.pair.setup import (
    AUTO,
    Rules,
    arrays_of,
    carry,
    one_by_one,
    pair_layers,
    pair_outputs,
    projection,
    read_port,
)
from parity.pair.stages import Compared, compare_pass
from parity.pair.updates import Optimizers, compare_updates
from parity.pair.written import known_rounding
from parity.platforms import jax_device, torch_device
from parity.request import Platform
from parity.result import Result
from twinstep.errors import UserError

DTYPES = ("float64", "float32", "bfloat16")
SEEDS = 8  # in float32 and bfloat16: the weights as given, and moved a little at random
NEEDED = ("activations", "loss", "gradients")  # without which there is no verdict

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
    platform: Platform = "cpu",
) -> Result:
    """Is `function` a right port of `module`? `result.first_divergence` names the first stage and tensor that differ.

    module: in the mode (train or eval) in which it is to be compared; it is copied, and left as it is.
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
    them, updates and moments are compared over `steps` steps from torch's gradients and parameters, and two free runs
    of as many steps.
    platform: where JAX runs, "cpu", "cuda" or "tpu". The copy of the module and its inputs go to the GPU where that is
    "cuda" and torch sees one, else to the CPU; a loss of yours finds both on that device.

    `data`, `schedule`, `clip` and `evaluation` are not compared. What the function or the transformation raises is a
    divergence at the stage that could not be judged, and ends the comparison. Raises UserError for bad input: names
    that do not match up, inputs that are empty or not finite, a module that raises, a platform that JAX does not see.
    """
    started = time.monotonic()
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose from {', '.join(DTYPES)}")
    if optimizers is not None and dtype != "float64":
        raise UserError(f"optimizers are compared in float64 only, and dtype is {dtype!r}; leave one of the two out")
    wide, ledger, said = dtype == "float64", Ledger(dtype), list[str]()
    wrong: Lines | None = None
    seeds = 1 if wide else SEEDS
    jax_side, torch_side = jax_device(platform), torch_device(platform)
    with jax.enable_x64(wide), jax.default_device(jax_side):
        original = own_copy(module, torch_side)
        read = read_inputs(inputs, "inputs")
        port_read = read if jax_inputs is None else read_inputs(jax_inputs, "jax_inputs")
        start = arrays_of(original)
        held = read_port(params, convert, original, buffers)
        carried = carry(weights, convert, original, held)
        compare_weights(ledger, carried, start, held.arrays)

        chosen: list[Output] = []  # known once the shapes of the outputs are
        torch_loss, jax_loss = losses or (projection(torch_projection, chosen), projection(jax_projection, chosen))
        truth = TorchModel(own_copy(original, torch_side), torch_side, read, torch_loss, wide=True)
        reference = truth if wide else TorchModel(original, torch_side, read, torch_loss, wide=False)
        port = JaxModel(function, held.params.build, held.buffers and held.buffers.build, port_read, jax_loss, wide)
        # A sum that was made in float32 is made again in float64.
        given = carried.leaves(arrays_of(reference.module), held.arrays) if wide else held.arrays
        leaves, state = held.apart(port.ready(given))
        with watch_lines(source_files(function)) as lines:
            ours: Pass | None = None
            try:
                ledger.now("activations", "function")
                chosen += pair_outputs(reference, port, leaves, state, outputs, where)
                theirs, ours = port.run(leaves, state), reference.run()
                theirs = one_by_one(theirs, layers, ours)
                carried = told_apart(carried, start, ours.param_gradients, theirs.param_gradients)
                what = Compared(chosen, pair_layers(layers, ours, theirs, carried), carried, where, losses is None)
                passed = Ledger(dtype)
                compare_pass(passed, what, ours, theirs, None if wide else truth.run())
                if wide and passed.judge()[2] is not None:
                    known = known_rounding(what, reference, port, leaves, state, (ours, theirs))
                    passed = Ledger(dtype)
                    compare_pass(passed, what._replace(known=known), ours, theirs, None)
                ledger.entries |= passed.entries
                if wide:
                    wrong = wrong_lines(ledger.judge(), what, reference, port, leaves, state)
                said += notes.left_out(what, ours, theirs)
                for seed in range(1, seeds):
                    moved = move_weights(reference, truth, seed)
                    theirs = one_by_one(
                        port.run(*held.apart(port.ready(carried.leaves(moved, held.arrays)))), layers, ours
                    )
                    compare_pass(ledger, what, reference.run(), theirs, truth.run())
                if optimizers is not None:
                    compare_updates(ledger, reference, port, carried, leaves, state, optimizers, steps)
            except PortError as error:
                ledger.refuse_here(GIVEN, str(error))
        stages, tensors, first = ledger.judge()
        said += notes.of_rounding(tensors)
        said = [*notes.interval(first, tensors, ours), *carried.doubts, *said, *notes.of_dropout(original)]
        said += [
            *notes.of_casts(truth.casts, port.casts),
            *notes.of_narrow(port.narrow),
            *notes.lines_left_out(lines, function),
        ]
        return Result(
            model=type(original).__name__,
            dtype=dtype,
            steps=steps if optimizers else 1,
            seed=0,
            seeds=seeds,
            devices=1,
            stages=stages,
            tensors=tensors,
            curves=[],
            first_divergence=first,
            needed=list(NEEDED),
            lines=wrong,
            notes=said,
            environment=environment(platform, [jax_side], torch_side),
            seconds=time.monotonic() - started,
        )
