"""Train a model: `python -m torch_ref.train [gpt|linear|embedding|mlp] [flags]`.

Read `train` from top to bottom: config, data, model, optimizers, and the loop around them.
"""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_ref import checkpoint, devices, parallel, processes
from torch_ref.evaluate import evaluate, metrics
from torch_ref.generate import sample_text
from torch_ref.input import eval_batches, train_batches
from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.models.gpt import GPT
from torch_ref.optimizer import newton_schulz_dtype, setup_optimizers
from torch_ref.profile import profiled
from torch_ref.schedule import lr_multiplier
from torch_ref.step import eval_step, train_step
from twinstep.cli import parse_train_config, place_run
from twinstep.config import Config
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


def main(argv: list[str]) -> int:
    return train(parse_train_config("python -m torch_ref.train", argv, "torch")).exit_code


def train(config: Config) -> RunResult:
    """Train as `config` says, or go on where `config.output.resume` is set. Raises UserError for what cannot run."""
    config = place_run(config, "torch")
    processes.initialize(config)
    run, resumed = Path(processes.text_of_first(str(config.output.out_dir))), config.output.resume
    rank, count = processes.shard()
    check_trackers(config)
    parallel.set_precision(config)

    data = load_data(config, tokenizer_file(run, config))
    config = fill_in(config, data)

    mode = parallel.choose_mode(config)
    device = processes.device()
    torch.manual_seed(config.train.seed)
    model = make_model(config)
    saved = checkpoint_steps(run) if resumed else []
    weights = first_weights(config, weight_shapes(model), checkpoint.load_params, data.summary, resumed=bool(saved))
    load_weights(model, weights)
    del weights
    model.to(device)
    optimizers = setup_optimizers(config, model)
    wrapped = parallel.wrap(config, model, mode)
    facts = first_facts(config)

    if rank == 0:
        if not resumed:
            create_run(run)
        if not saved:
            write_run(run, config, data.summary, data.tokenizer)
        check_data(run, data.summary)
    if saved:
        facts = checkpoint.restore(run, config, model, optimizers, saved[-1])
    start = saved[-1] if saved else 0
    extension = take_up_extension(facts, config, start, lr_multiplier)
    if finished(facts, config, start):
        if rank == 0:
            plot_loss([run], run / "loss.png")
            print(f"{run} ended at step {start} of {config.train.steps}; there is nothing to continue")
        del wrapped  # it would hold the process group past its end
        processes.close()
        return RunResult(run, start)
    log = open_log(run, config, data, start, devices.peak_flops(config), is_main=rank == 0)

    def place(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    def run_evaluation(step: int) -> bool:
        """Log the held-out metrics; True if they are the best so far."""
        model.eval()
        batches = map(place, eval_batches(data.validation, config.train.eval_batches, rank, count))
        found = metrics(evaluate(lambda batch: eval_step(model, batch), batches))
        model.train()
        if not math.isfinite(found["val_loss"]):
            finite = {name: bool(p.isfinite().all()) for name, p in model.named_parameters()}
            raise not_finite(step, f"the validation loss is {found['val_loss']}", finite, checkpoint_steps(run))
        log.evaluation(step, found)
        return note_evaluation(facts, step, found["val_loss"])

    def run_save(step: int) -> None:
        if rank == 0:
            checkpoint.save(run, step, model, optimizers, facts)
            remove_old(run, config.output.keep_last, checkpoint.read_facts)
        log.skip_time()

    def run_sample(step: int) -> None:
        if rank == 0 and isinstance(model, GPT) and data.tokenizer is not None:
            out = config.output
            text = sample_text(
                model, config, data.tokenizer, out.sample_prompt, out.sample_tokens, 0.8, config.train.seed
            )
            log.say(f"sample at step {step}:\n{text}\n")
            log.skip_time()

    with lock_run(run) if rank == 0 else nullcontext(), log, StopRequest() as stop:
        if rank == 0:
            trim_metrics(run, saved[-1] if saved else None)
            remove_unfinished(run)
            update_config(run, config)
        resumed_at = start if resumed else None
        describe(log, data, devices.describe_devices(mode), newton_schulz_dtype(config), resumed_at)
        if extension:
            log.say(extension)
        model.train()
        if start == 0:
            run_evaluation(0)
        batches = train_batches(data.train, start, config.train.steps, rank, count)
        for step, batch in profiled(log, start, batches):
            step_metrics = train_step(config, wrapped, optimizers, step - 1, place(batch))
            record(log, config, model, step, step_metrics)

            stop.signal = processes.agreed(stop.signal)  # read once: it may arrive at any time
            stopping = stop.signal is not None
            last = step == config.train.steps
            evaluating = evaluation_due(config, step)
            saving = due(step, config.output.save_every) or last or stopping
            sampling = due(step, config.output.sample_every) or last
            if evaluating:
                improved = run_evaluation(step)
                keeps_best = config.output.save_every > 0 or config.train.patience > 0
                saving = saving or (improved and keeps_best)
                if finished(facts, config, step) and not last:
                    log.say(f"stopped early at step {step}: no improvement in {config.train.patience} evaluations")
                    last = saving = sampling = True
            if saving:
                run_save(step)
            if sampling:
                run_sample(step)
            if last or stopping:
                break
        if rank == 0:
            plot_loss([run], run / "loss.png")
        if last:
            log.say(f"done: {run} holds config.json, metrics.jsonl, loss.png and checkpoints/")
        else:
            log.say(f"interrupted: saved step {step} in {run}; --resume --out-dir {run} continues")
    del wrapped  # it would hold the process group past its end
    processes.close()
    return RunResult(run, step, stop.exit_code)


def record(log: RunLog, config: Config, model: nn.Module, step: int, found: dict[str, Any]) -> None:
    """Log one step's metrics where they are due. Raises RunError if they are not finite."""
    loss, grad_norm = float(found["loss"]), float(found["grad_norm"])
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        names = [name for name, _ in model.named_parameters()]
        finite = dict(zip(names, found["leaf_norms"].isfinite().tolist(), strict=True))
        what = f"the loss is {loss} and the norm of the gradient {grad_norm}"
        raise not_finite(step, what, finite, checkpoint_steps(log.run), log.run)
    if step % config.output.log_every == 0 or step == 1:
        log.train(step, loss, found["learning_rate"], grad_norm, found)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
