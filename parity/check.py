"""One check: the same numbers into both frameworks, every stage compared, the first divergence named."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from parity.budget import SPREADS
from parity.child import check_in_child
from parity.environment import environment
from parity.jax_side import JaxSide
from parity.ledger import GIVEN, Key, Ledger
from parity.own_weights import tokenizer_of, trained_weights
from parity.platforms import torch_device, with_orthogonalization
from parity.precision import with_hint
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
    on_cpu = request.platform == "cpu" and jax.default_backend() == "cpu"
    if request.config.train.dtype == "float64" and request.devices == 1 and on_cpu:
        return check_here(request)
    return check_in_child(request)


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
    ledger, curves = Ledger(dtype, spread), []
    port: JaxSide | None = None
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
            references = {init: reference_of(config, data, init, number == 0) for init in inits}
            with around():
                port = port or JaxSide(with_orthogonalization(request.platform, config), request.devices)
                for init, reference in references.items():
                    curve = compare_stages(ledger, port, reference, data, init, config)
                    if curve is not None:
                        curves.append(curve)
        stages, tensors, first = ledger.judge()
        devices = jax.devices()[: request.devices]
        return Result(
            model=config.model_name,
            dtype=dtype,
            steps=config.train.steps,
            seed=request.config.train.seed,
            seeds=request.seeds,
            devices=request.devices,
            stages=stages,
            tensors=tensors,
            curves=curves,
            first_divergence=with_hint(first, request.config.train, request.platform),
            config=to_dict(config),
            environment=environment(request.platform, devices, torch_device(request.platform)),
            seconds=time.monotonic() - started,
        )


def compare_stages(
    ledger: Ledger, port: JaxSide, reference: Reference, data: Data, init: str, config: Config
) -> Curve | None:
    """Every stage of one run from one initialization; the curve of its trajectory, where that is compared."""
    for step, batch in enumerate(port.batches(data, 0, config.train.steps)):
        compare_data(ledger, init, step, reference.batches[step], batch)

    start = port.initial_state(reference.weights)
    compare_weights(ledger, init, 0, reference.start.weights, start.weights)
    try:
        compare_weights(ledger, init, 0, *carried(reference.start.weights, port.carried(reference.start)))
    except UserError as error:  # the bridge refuses: there is nothing to go on with
        ledger.refuse(Key("weights", "bridge", init), 0, str(error))
        return None
    compare_schedule(ledger, init, reference.schedule, port.schedule())

    anchored = {}
    for step, at in reference.watched.items():
        if step > 0:
            compare_weights(ledger, init, step, *carried(at.before.weights, port.carried(at.before)))
        stepped = port.train_step(at.before, at.batch)
        captured = port.capture(at.before, at.batch)
        compare_activations(ledger, init, step, at.captured, captured, at.true_captured, at.serial.captured)
        compare_step(ledger, init, step, at.stepped, stepped, at.true_stepped, at.serial)
        optimized = port.optimize(at.before, at.stepped.gradients)
        compare_optimizers(
            ledger, init, at.before, at.stepped.gradients, at.optimized, optimized, at.true_optimized, reference.labels
        )
        note_idle_decay(ledger, init, at.before, at.optimized, reference.labels, reference.schedule)
        compare_buffers(ledger, init, step, at.stepped, stepped, at.true_stepped)
        anchored[step] = (at, stepped)

    evaluation = port.evaluate(reference.end, data, config.train.eval_batches)
    compare_evaluation(ledger, init, config.train.steps, reference.evaluation, evaluation, reference.true_evaluation)
    if not reference.moved_runs:
        return None
    run = run_port(port, start, data, config.train.steps, list(reference.watched))
    return compare_runs(ledger, init, reference, run, anchored)


def carried(reference: Named, port: Named) -> tuple[Named, Named]:
    """The names under which weights after the bridge are entered, beside those that each side loads itself."""
    ours, theirs = ({f"{name} (carried)": x for name, x in side.items()} for side in (reference, port))
    return ours, theirs
