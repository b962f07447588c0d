"""The log of a run: metrics.jsonl always, a progress bar on a terminal, other trackers on request."""

import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from twinstep.config import Config, CorpusConfig
from twinstep.data import Data
from twinstep.errors import UserError, first_line
from twinstep.extras import needs
from twinstep.flops import flops_per_token, parameter_count
from twinstep.resolve import sequence_len, units_per_step
from twinstep.run_dir import append_metrics, write_atomically
from twinstep.terminal import Bar

# Control characters except line end and tab: a sample of an untrained model must not control the terminal.
CONTROLS = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


class RunConsole(Console):
    """Standard output. When its reader goes away (`| head`), training goes on without output."""

    def on_broken_pipe(self) -> None:
        """Called by rich when nobody reads standard output any more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunLog:
    """Use as a context manager. Only the main process of a run over several hosts writes and shows.

    unit: what a batch counts in, "tokens" or "examples". peak_flops: FLOP/s of the devices together, or None.
    """

    def __init__(self, run: Path, config: Config, *, start: int, units_per_step: int, unit: str,
                 flops_per_step: float, peak_flops: float | None, is_main: bool = True):  # fmt: skip
        self.run, self.config, self.is_main = run, config, is_main
        self.units_per_step, self.unit = units_per_step, unit
        self.flops_per_step, self.peak_flops = flops_per_step, peak_flops
        self.console = RunConsole(highlight=False, quiet=not is_main)
        self.last_step, self.last_time = start, time.perf_counter()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            expand=True,
            refresh_per_second=4,
            disable=not (is_main and self.console.is_terminal),
        )
        self.task = self.bar.add_task(config.model_name, total=config.train.steps, completed=start, status="")
        self.trackers: list[TensorBoard | WeightsAndBiases] = []

    def __enter__(self) -> "RunLog":
        if self.is_main:
            self.trackers = open_trackers(self.run, self.config, self.last_step)
        self.bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.stop()
        for tracker in self.trackers:
            tracker.close()

    def say(self, text: str) -> None:
        """Print text above the progress bar; what standard output cannot encode is escaped."""
        encoding = self.console.encoding
        text = text.translate(CONTROLS).encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(text, markup=False, soft_wrap=True)

    def skip_time(self) -> None:
        """Leave the time since the last step (an evaluation, a save) out of the training speed."""
        self.last_time = time.perf_counter()

    def train(
        self, step: int, loss: float, learning_rate: float, grad_norm: float, metrics: Mapping[str, SupportsFloat]
    ) -> None:
        """Record one training step; the speed is the mean since the last record.

        metrics: all that the step returned, of which the norms of each label's parameters are recorded where they are
        finite: "param_norm/LABEL", "update_norm/LABEL". The gradient may be finite, and what it does to them not.
        """
        now = time.perf_counter()
        steps_per_second = (step - self.last_step) / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        speed = steps_per_second * self.units_per_step
        group_norms = {name: float(x) for name, x in metrics.items() if "_norm/" in name}
        record = {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            **{name: norm for name, norm in group_norms.items() if math.isfinite(norm)},
            f"{self.unit}_per_second": speed,
        }
        if self.peak_flops:
            record["mfu"] = steps_per_second * self.flops_per_step / self.peak_flops
        self.write(record)
        share = f", {100 * record['mfu']:.0f}% of peak" if "mfu" in record else ""
        self.bar.update(self.task, completed=step, status=f"loss {loss:.4f}, {speed:,.0f} {self.unit}/s{share},")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Record an evaluation and print it."""
        self.write({"step": step, **metrics})
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        self.skip_time()

    @contextmanager
    def writing_profile(self, how_to_look: str) -> Iterator[None]:
        """Say that a profile was written in the block, or why it was not; neither ends the run."""
        try:
            yield
            self.say(f"profile: {how_to_look}")
        except (OSError, RuntimeError) as error:
            self.say(f"profile: it could not be written: {first_line(error)}")
        self.skip_time()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and hand it to the trackers; the main process only."""
        if not self.is_main:
            return
        append_metrics(self.run, record)
        for tracker in self.trackers:
            tracker.write(record)


def open_log(run: Path, config: Config, data: Data, start: int, peak_flops: float | None, is_main: bool) -> RunLog:
    """The log of a run from step `start` on: it counts tokens where the data is text, else examples."""
    return RunLog(
        run,
        config,
        start=start,
        units_per_step=units_per_step(config),
        unit="tokens" if data.tokenizer is not None else "examples",
        flops_per_step=flops_per_token(config.model, sequence_len(config)) * units_per_step(config),
        peak_flops=peak_flops,
        is_main=is_main,
    )


def describe(
    log: RunLog, data: Data, devices: str, orthogonalization: object, resumed_at: int | None, memory: str = ""
) -> None:
    """The first lines of a run: everything that decides what it computes, and on what."""
    config, t = log.config, log.config.train
    log.say(f"{config.model_name}: {parameter_count(config.model):,} parameters, {config.model}")
    log.say(f"devices: {devices}")
    if memory:
        log.say(f"memory: {memory}")
    log.say(
        f"arithmetic: {t.dtype}, parameters and optimizer state {config.param_dtype}, orthogonalization "
        f"{orthogonalization}, matmul precision {t.matmul_precision}, remat {'on' if t.remat else 'off'}"
    )
    log.say(
        f"horizon: {t.steps} steps of {log.units_per_step:,} {log.unit} in {t.accumulation} micro-steps, "
        f"{log.flops_per_step * t.steps:.3g} FLOPs"
    )
    log.say("data: " + ", ".join(f"{name} {value}" for name, value in data.summary.items()))
    if data.note:
        log.say(data.note)
    if isinstance(config.data, CorpusConfig) and config.data.tokenizer == "bpe" and data.tokenizer is not None:
        reached, wanted = data.tokenizer.vocab_size, config.data.bpe_vocab_size
        if reached < wanted:
            log.say(
                f"tokenizer: BPE reached {reached:,} of the {wanted:,} tokens asked for; its training text has no more "
                "pairs to join"
            )
    if data.validation_text is not None:
        log.say(f"gzip -9 makes {data.validation_gzip_bits_per_byte():.4f} bits per byte of the validation text")
    log.say(f"{'run' if resumed_at is None else f'resumed at step {resumed_at}'}: {log.run}")


def steps_to_profile(log: RunLog, start: int) -> range:
    """The steps of `--profile` in a run that goes on after step `start`; none on other processes than the main one."""
    asked = log.config.output.profile_steps
    if not asked or not log.is_main:
        return range(0)
    if asked.stop <= start + 1:
        log.say(f"profile: steps {asked.start} to {asked.stop - 1} were taken before; --profile later ones")
        return range(0)
    return range(max(asked.start, start + 1), asked.stop)


class TensorBoard:
    """Event files under RUN/tensorboard, by tensorboardX; those past the step of a resume no longer count."""

    def __init__(self, run: Path, start: int):
        from tensorboardX import SummaryWriter

        # Event files are named by the second: with the suffix, a quick resume does not overwrite the last one.
        self.writer = SummaryWriter(
            str(run / "tensorboard"), purge_step=start + 1 if start else None, filename_suffix=f".{start}"
        )

    def write(self, record: dict[str, Any]) -> None:
        """Each number of a record as a scalar at its step."""
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run in RUN/wandb; WANDB_MODE=offline keeps it on this machine.

    Its identity is kept in the run directory, so that a resume goes on with it; names may repeat elsewhere.
    """

    def __init__(self, run: Path, config: Config):
        import wandb

        (run / "wandb").mkdir(exist_ok=True)
        identity = run / "wandb" / "id.txt"
        if not identity.exists():
            write_atomically(identity, uuid.uuid4().hex)
        self.wandb_run = wandb.init(
            project="twinstep",
            name=run.name,
            dir=run,
            config=asdict(config),
            resume="allow",
            id=identity.read_text(encoding="utf-8"),
        )

    def write(self, record: dict[str, Any]) -> None:
        """Each number of a record at its step."""
        self.wandb_run.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self.wandb_run.finish()


def check_trackers(config: Config) -> None:
    """Raises MissingPackageError for a tracker that was asked for."""
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if getattr(config.output, name):
            needs(package, f"--{name}")


def open_trackers(run: Path, config: Config, start: int) -> list[TensorBoard | WeightsAndBiases]:
    """The trackers asked for. Raises UserError if one cannot be opened."""
    trackers: list[TensorBoard | WeightsAndBiases] = []
    try:
        if config.output.tensorboard:
            trackers.append(TensorBoard(run, start))
        if config.output.wandb:
            trackers.append(WeightsAndBiases(run, config))
    except Exception as error:  # whatever the packages raise: no account, no network, a full disk
        raise UserError(
            f"cannot open the tracker: {first_line(error)}; leave --tensorboard and --wandb out of {run}"
        ) from error
    return trackers
