"""One check: the same numbers into both frameworks, every stage compared, the first divergence named."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from parity import own_arithmetic
from parity.broken import PortError, of_port
from parity.budget import SPREADS
from parity.child import check_in_child
from parity.dropout_masks import check_by_key, with_masks, without_masks
from parity.entries import GIVEN, Key
from parity.environment import environment
from parity.exercised import not_run, watch_lines
from parity.generation import compare_generation
from parity.idle import Idle, find_idle
from parity.jax_side import JaxSide
from parity.ledger import Ledger
from parity.lines.line import Lines
from parity.own_lines import own_lines
from parity.own_weights import tokenizer_of, trained_weights
from parity.places import name_stages, name_tensor
from parity.platforms import torch_device, with_orthogonalization
from parity.precision import with_hint
from parity.real_step import compare_logged, compare_real_step
from parity.reference import Reference, make_reference
from parity.request import Request
from parity.result import Curve, Result
from parity.side import Named
from parity.stages import (
    compare_activations,
    compare_buffers,
    compare_data,
    compare_evaluation,
    compare_optimizers,
    compare_schedule,
    compare_step,
    compare_weights,
    note_idle_decay,
    note_unknown_state,
)
from parity.trajectory import compare_runs, run_port
from twinstep.config import Config, check_shards, to_dict
from twinstep.data import Data, load_data
from twinstep.errors import UserError
from twinstep.resolve import fill_in

MakeReference = Callable[..., Reference]  # with the arguments of `make_reference`
SEEDS = 8  # in float32 and bfloat16


def check(request: Request) -> Result:
    """The check: in float64 on one CPU device here, otherwise in a child process whose JAX is set up for it.

    Raises UserError if the configuration cannot run.
    """
    check_shards(request.config.batch_size, request.config.train.accumulation, request.devices)
    check_by_key(request.config, request.devices)
    if request.config.devices.parallel == "jit" and request.devices > 1:
        raise UserError(f"--parallel jit uses one device, but --devices is {request.devices}; pass --parallel pmap")
    on_cpu = request.platform == "cpu" and jax.default_backend() == "cpu"
    if request.config.train.dtype == "float64" and request.devices == 1 and on_cpu:
        return check_watched(request)
    return check_in_child(request)


def check_watched(request: Request) -> Result:
    """`check_here`, with what the check did not run in the result."""
    jax.clear_caches()  # a function that was traced before would not be traced again
    with watch_lines(own_arithmetic.files()) as lines:
        result = check_here(request)
    missing = not_run(lines, own_arithmetic.ROOT)
    return replace(result, not_run=[x for x in missing if not own_arithmetic.is_beside(x)])


def check_here(
    request: Request,
    reference_of: MakeReference | None = None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Result:
    """The check, in this process and with JAX as it is set. Raises UserError if the configuration cannot run.

    reference_of: where references come from, for callers that keep them, on the CPU. around: a context in which the
    JAX side is built and run, for callers that change it.
    """
    started = time.monotonic()
    dtype = request.config.train.dtype
    # In bfloat16 the spread of the ratios is known where it was measured: on CPUs.
    spread = SPREADS[dtype if dtype == "bfloat16" and request.platform == "cpu" else "float32"]
    ledger, curves, idle = Ledger(dtype, spread), list[Curve](), list[Idle]()
    port: JaxSide | None = None
    lines: Lines | None = None
    inits, tokenizer = request.inits, None
    reference_of = reference_of or partial(make_reference, platform=request.platform)
    if request.checkpoint is not None:
        folder = Path(request.checkpoint)
        inits, tokenizer = (GIVEN,), tokenizer_of(folder)
        reference_of = partial(reference_of, weights=trained_weights(folder))
    precision = request.config.train.matmul_precision
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(precision):
        for number in range(request.seeds):
            seed = request.config.train.seed + number
            config = replace(request.config, train=replace(request.config.train, seed=seed))
            data = load_data(config, tokenizer)
            config = fill_in(config, data)
            masked = with_masks(data, config)
            references = {init: reference_of(config, masked, init, number == 0) for init in inits}
            make_port = partial(JaxSide, with_orthogonalization(request.platform, config), request.devices)
            with around():
                for init, reference in references.items():
                    port = port or built(ledger, make_port, init)
                    if port is not None:
                        generates = request.generation and (number, init) == (0, inits[0])
                        compare_stages(ledger, curves, port, reference, data, init, config, generates)
                if port is not None and dtype == "float64":
                    lines = lines_of(ledger, config, references, port)
            if number == 0 and request.nudge:
                own = with_orthogonalization(request.platform, config)
                idle = find_idle(own, masked, inits[0], references[inits[0]], torch_device(request.platform))
        stages, tensors, first = ledger.judge()
        devices = jax.devices()[: request.devices]
        return Result(
            model=config.model_name,
            dtype=dtype,
            steps=config.train.steps,
            seed=request.config.train.seed,
            seeds=request.seeds,
            devices=request.devices,
            stages=name_stages(stages),
            tensors=tensors,
            curves=curves,
            first_divergence=name_tensor(with_hint(first, request.config.train, request.platform), request.config),
            idle=idle,
            lines=lines,
            config=to_dict(config),
            environment=environment(request.platform, devices, torch_device(request.platform)),
            seconds=time.monotonic() - started,
        )


def lines_of(ledger: Ledger, config: Config, references: Mapping[str, Reference], port: JaxSide) -> Lines | None:
    """The first wrong line of each side; None where all agrees, or a step cannot be taken again."""
    judged = ledger.judge()
    first = judged[2]
    if first is None or first.init not in references:
        return None
    try:
        with of_port():
            return own_lines(judged, config, references[first.init].watched, port)
    except (PortError, UserError):  # what it is has been entered
        return None


def built(ledger: Ledger, make_port: Callable[[], JaxSide], init: str) -> JaxSide | None:
    """The port, or None where it cannot be built. Raises UserError for a configuration that JAX cannot run."""
    ledger.now("weights", "model")
    try:
        with of_port():
            return make_port()
    except PortError as error:
        ledger.refuse_here(init, str(error))
        return None


def compare_stages(
    ledger: Ledger,
    curves: list[Curve],
    port: JaxSide,
    reference: Reference,
    data: Data,
    init: str,
    config: Config,
    generates: bool,
) -> None:
    """Every stage of one run from one initialization, with the curve of its trajectory where that is compared.

    What the port raises, or returns that cannot be compared, is entered where it happens and ends the comparison of
    the training. What follows on it starts from the reference's weights and is compared all the same.
    """
    parts = (
        partial(compare_training, ledger, curves, port, reference, data, init, config),
        partial(compare_afterwards, ledger, port, reference, data, init, config, generates),
    )
    for compare_part in parts:
        try:
            with of_port():
                compare_part()
        except (PortError, UserError) as error:  # bad input has stopped the reference, or the port when it was built
            ledger.refuse_here(init, str(error))


def compare_training(
    ledger: Ledger, curves: list[Curve], port: JaxSide, reference: Reference, data: Data, init: str, config: Config
) -> None:
    """From the first batch to the end of a run, in order."""
    steps, taken = config.train.steps, 0
    ledger.now("data", "batches")
    for step, batch in enumerate(islice(port.batches(data, 0, steps), steps + 1)):  # one too many is enough to know
        taken = step + 1
        if step < steps:
            compare_data(ledger, init, step, without_masks(reference.batches[step], config), batch)
        ledger.now("data", "batches", taken)
    refuse_another_number(ledger, init, steps, taken)

    ledger.now("weights", "initial state")
    start = port.initial_state(reference.weights)
    compare_weights(ledger, init, 0, reference.start.weights, start.weights)
    ledger.now("weights", "bridge")
    compare_weights(ledger, init, 0, *carried(reference.start.weights, port.carried(reference.start)))
    ledger.now("schedule", "curves")
    compare_schedule(ledger, init, reference.schedule, port.schedule())

    anchored, labels = {}, reference.labels
    for step, at in reference.watched.items():
        if step > 0:
            ledger.now("weights", "bridge", step)
            compare_weights(ledger, init, step, *carried(at.before.weights, port.carried(at.before)))
        batch = without_masks(at.batch, config)
        ledger.now("activations", "forward and backward pass", step)
        captured = port.capture(at.before, batch)
        compare_activations(ledger, init, step, at.captured, captured, at.true_captured, at.serial.captured)
        ledger.now("loss", "training step", step)
        stepped = port.train_step(at.before, batch)
        compare_step(ledger, init, step, at.stepped, stepped, at.true_stepped, at.serial)
        ledger.now("clip", "optimizers", step)
        if step == 0 or not port.layout.unknown:
            optimized = port.optimize(at.before, at.stepped.gradients)
            compare_optimizers(
                ledger, init, at.before, at.stepped.gradients, at.optimized, optimized, at.true_optimized, labels
            )
            anchored[step] = (at, stepped)
        else:
            note_unknown_state(ledger, init, step, port.layout.unknown.values())
        note_idle_decay(ledger, init, at.before, at.optimized, labels, reference.schedule)
        ledger.now("parameters", "buffers", step)
        compare_buffers(ledger, init, step, at.stepped, stepped, at.true_stepped)
        parts = port.optimize(at.before, stepped.gradients).after
        compare_logged(ledger, init, at.before, at.stepped, stepped, parts, labels)
        compare_real_step(ledger, init, parts, stepped, port.orthogonalized_in_bfloat16())

    if reference.moved_runs:
        ledger.now("trajectory", "run")
        run = run_port(ledger, init, port, start, data, steps, list(reference.watched))
        refuse_another_number(ledger, init, steps, len(run.losses), "trajectory")
        if len(run.losses) == steps:
            curves.append(compare_runs(ledger, init, reference, run, anchored))


def compare_afterwards(
    ledger: Ledger, port: JaxSide, reference: Reference, data: Data, init: str, config: Config, generates: bool
) -> None:
    """What is done with a trained model."""
    steps = config.train.steps
    ledger.now("evaluation", "evaluation", steps)
    evaluation = port.evaluate(reference.end, data, config.train.eval_batches)
    compare_evaluation(ledger, init, steps, reference.evaluation, evaluation, reference.true_evaluation)
    if generates:
        ledger.now("generation", "generation", steps)
        compare_generation(ledger, init, port, reference, config)


def refuse_another_number(ledger: Ledger, init: str, ours: int, theirs: int, stage: str = "data") -> None:
    """Enter batches that are too few or too many, and are therefore beside none of the reference's."""
    if theirs != ours:
        many = f"{theirs} or more" if theirs > ours else f"{theirs}"
        ledger.refuse(Key(stage, "batches", init), min(ours, theirs), f"{many} batches in JAX, {ours} in torch")


def carried(reference: Named, port: Named) -> tuple[Named, Named]:
    """The names under which weights after the bridge are entered, beside those that each side loads itself."""
    ours, theirs = ({f"{name} (carried)": x for name, x in side.items()} for side in (reference, port))
    return ours, theirs
