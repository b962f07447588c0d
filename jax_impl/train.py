"""Train a model: `python -m jax_impl.train [gpt|linear|embedding|mlp] [flags]`.

Read `train` from top to bottom: config, data, state, step, and the loop around them.
"""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import checkpoint, cpu, devices, parallel, processes
from jax_impl.compilation_cache import keep_compiled_programs
from jax_impl.evaluate import evaluate, metrics
from jax_impl.generate import sample_text
from jax_impl.input import eval_batches, train_batches
from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer, newton_schulz_dtype
from jax_impl.profile import profiled
from jax_impl.schedule import lr_multiplier
from jax_impl.tree import flatten
from twinstep.cli import parse_train_config, place_run
from twinstep.config import Config, GPTConfig
from twinstep.data import load_data
from twinstep.errors import not_finite, run_command
from twinstep.plot import plot_loss
from twinstep.pretrained.start import first_weights, tokenizer_file
from twinstep.progress import due, evaluation_due, finished, first_facts, note_evaluation, take_up_extension
from twinstep.resolve import fill_in
from twinstep.run_dir import (
    check_data,
    checkpoint_steps,
    create_run,
    lock_run,
    remove_old,
    remove_unfinished,
    trim_metrics,
    update_config,
    write_run,
)
from twinstep.run_log import RunLog, check_trackers, describe, open_log
from twinstep.run_result import RunResult
from twinstep.signals import StopRequest


@processes.leave_together
def main(argv: list[str]) -> int:
    return train(parse_train_config("python -m jax_impl.train", argv, "jax")).exit_code


def train(config: Config) -> RunResult:
    """Train as `config` says, or go on where `config.output.resume` is set. Raises UserError for what cannot run."""
    config = place_run(config, "jax")
    processes.initialize(config)
    run, resumed = Path(processes.text_of_first(str(config.output.out_dir))), config.output.resume
    rank, count = processes.shard()
    check_trackers(config)
    keep_compiled_programs(config)
    parallel.set_precision(config)

    data = load_data(config, tokenizer_file(run, config))
    config = fill_in(config, data)
    memory = cpu.KEPT if cpu.keep_freed_memory(config) else ""

    mode = parallel.choose_mode(config)
    model = make_model(config, parallel.axis_name(mode), parallel.attention(), parallel.scans_blocks(mode))
    optimizer = make_optimizer(config, model.params, *parallel.muon_stacks(mode))
    steps = parallel.make_steps(config, mode, model, optimizer)

    shapes = {name: s.shape for name, s in (flatten(model.params) | flatten(model.buffers)).items()}
    saved = checkpoint_steps(run) if resumed else []
    weights = first_weights(config, shapes, checkpoint.load_params, data.summary, resumed=bool(saved))
    state = steps.init_state(weights)
    facts = first_facts(config)

    def claim_run() -> None:
        if not resumed:
            create_run(run)
        if not saved:
            write_run(run, config, data.summary, data.tokenizer)
        check_data(run, data.summary)

    def tidy_run() -> None:
        trim_metrics(run, saved[-1] if saved else None)
        remove_unfinished(run)
        update_config(run, config)

    processes.first_does(claim_run)
    if saved:
        state, facts = checkpoint.restore(run, config, steps.global_state(state), saved[-1])
    start = int(state.step)
    extension = take_up_extension(facts, config, start, lr_multiplier)
    if finished(facts, config, start):
        if rank == 0:
            plot_loss([run], run / "loss.png")
            print(f"{run} ended at step {start} of {config.train.steps}; there is nothing to continue")
        return RunResult(run, start)
    log = open_log(run, config, data, start, devices.peak_flops(config), is_main=rank == 0)

    def run_evaluation(step: int) -> bool:
        """Log the held-out metrics; True if they are the best so far."""
        batches = map(steps.place_eval_batch, eval_batches(data.validation, config.train.eval_batches, rank, count))
        found = metrics(evaluate(lambda batch: steps.evaluate(state, batch), batches))
        if not math.isfinite(found["val_loss"]):
            finite = {name: bool(jnp.isfinite(array).all()) for name, array in flatten(state.params).items()}
            raise not_finite(step, f"the validation loss is {found['val_loss']}", finite, checkpoint_steps(run))
        log.evaluation(step, found)
        return note_evaluation(facts, step, found["val_loss"])

    def run_save() -> None:
        checkpoint.save(manager, steps.global_state(state), facts)
        if rank == 0:
            remove_old(run, config.output.keep_last, checkpoint.read_facts)
        log.skip_time()

    def run_sample(step: int) -> None:
        if isinstance(config.model, GPTConfig) and data.tokenizer is not None:
            params = steps.local_params(state)
            out = config.output
            text = sample_text(
                model, params, config, data.tokenizer, out.sample_prompt, out.sample_tokens, 0.8, config.train.seed
            )
            log.say(f"sample at step {step}:\n{text}\n")
            log.skip_time()

    with (
        processes.first_does(lambda: lock_run(run)) or nullcontext(),
        log,
        StopRequest() as stop,
        checkpoint.open_manager(run) as manager,
    ):
        processes.first_does(tidy_run)
        resumed_at = start if resumed else None
        describe(log, data, devices.describe_devices(mode), newton_schulz_dtype(config), resumed_at, memory)
        if extension:
            log.say(extension)
        if start == 0:
            run_evaluation(0)
        step_metrics: dict[str, jax.Array] = {}
        pending = None  # the metrics of the previous step, fetched while this step runs (on a CPU it has finished)
        batches = train_batches(data.train, start, config.train.steps, rank, count)
        for step, batch in profiled(log, start, batches):
            gathered = step_metrics.get("signal")  # of the previous step
            state, step_metrics = steps.train(state, steps.place_train_batch(batch), stop.signal or 0)
            record(log, config, model.params, pending)
            pending = (step, step_metrics)

            # Read once: a signal that arrives later counts at the next step.
            agreed = processes.agreed(stop.signal, gathered)
            stopping = agreed is not None
            if stopping:
                stop.signal = agreed
            last = step == config.train.steps
            evaluating = evaluation_due(config, step)
            saving = due(step, config.output.save_every) or last or stopping
            sampling = due(step, config.output.sample_every) or last
            if not (evaluating or saving or sampling):
                continue
            record(log, config, model.params, pending)  # raises before a loss that is not finite is saved
            pending = None
            if evaluating:
                improved = run_evaluation(step)
                keeps_best = config.output.save_every > 0 or config.train.patience > 0
                saving = saving or (improved and keeps_best)
                if finished(facts, config, step) and not last:
                    log.say(f"stopped early at step {step}: no improvement in {config.train.patience} evaluations")
                    last = saving = sampling = True
            if saving:
                run_save()
            if sampling:
                run_sample(step)
            if last or stopping:
                break
        checkpoint.finish(manager)
        if rank == 0:
            remove_old(run, config.output.keep_last, checkpoint.read_facts)
            plot_loss([run], run / "loss.png")
        if last:
            log.say(f"done: {run} holds config.json, metrics.jsonl, loss.png and checkpoints/")
        else:
            log.say(f"interrupted: saved step {step} in {run}; --resume --out-dir {run} continues")
    return RunResult(run, step, stop.exit_code)


def record(log: RunLog, config: Config, params: Any, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
    """Log one step's metrics where they are due. Raises RunError if they are not finite."""
    if pending is None:
        return
    step, found = pending
    loss, grad_norm = float(found["loss"]), float(found["grad_norm"])
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        finite = dict(zip(flatten(params), np.isfinite(found["leaf_norms"]).tolist(), strict=True))
        what = f"the loss is {loss} and the norm of the gradient {grad_norm}"
        raise not_finite(step, what, finite, checkpoint_steps(log.run), log.run)
    if step % config.output.log_every == 0 or step == 1:
        log.train(step, loss, float(found["learning_rate"]), grad_norm, found)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
