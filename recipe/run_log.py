"""What a run shows and records: metrics.jsonl always, a progress bar on a terminal, other trackers on request."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipe.config import Config
from recipe.errors import UserError
from recipe.run_dir import append_metrics


class RunLog:
    """Use as a context manager. Only the main process of a run over several hosts writes and shows.

    unit: what a batch counts in, "tokens" or "examples". peak_flops: FLOP/s of the devices together, or None.
    """

    def __init__(self, run: Path, config: Config, *, start: int, units_per_step: int, unit: str,
                 flops_per_step: float, peak_flops: float | None, is_main: bool = True):  # fmt: skip
        self.run, self.config, self.is_main = run, config, is_main
        self.units_per_step, self.unit = units_per_step, unit
        self.flops_per_step, self.peak_flops = flops_per_step, peak_flops
        self.console = Console(stderr=False, highlight=False, quiet=not is_main)
        self.last_step, self.last_time = start, time.perf_counter()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (is_main and self.console.is_terminal),
        )
        self.task = self.bar.add_task(config.model_name, total=config.train.steps, completed=start, status="")
        self.trackers = open_trackers(run, config) if is_main else []

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.stop()
        for tracker in self.trackers:
            tracker.close()

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def skip_time(self) -> None:
        """What happened since the last step (an evaluation, a save) is no part of the training speed."""
        self.last_time = time.perf_counter()

    def train(self, step: int, loss: float, learning_rate: float, grad_norm: float) -> None:
        """Record one training step; the speed is the mean since the last record."""
        now = time.perf_counter()
        steps_per_second = (step - self.last_step) / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        speed = steps_per_second * self.units_per_step
        record = {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            f"{self.unit}_per_second": speed,
        }
        if self.peak_flops:
            record["mfu"] = steps_per_second * self.flops_per_step / self.peak_flops
        self.write(record)
        share = f" {100 * record['mfu']:.0f}% of peak" if "mfu" in record else ""
        self.bar.update(self.task, completed=step, status=f"loss {loss:.4f} {speed:,.0f} {self.unit}/s{share}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Record an evaluation and print it."""
        self.write({"step": step, **metrics})
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        self.skip_time()

    def write(self, record: dict[str, Any]) -> None:
        if not self.is_main:
            return
        append_metrics(self.run, record)
        for tracker in self.trackers:
            tracker.write(record)


class TensorBoard:
    """Event files under RUN/tensorboard, by tensorboardX."""

    def __init__(self, run: Path):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run in RUN/wandb; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, run: Path, config: Config):
        import wandb

        self.wandb_run = wandb.init(
            project="twinstep", name=run.name, dir=run, config=asdict(config), resume="allow", id=run.name
        )

    def write(self, record: dict[str, Any]) -> None:
        self.wandb_run.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    def close(self) -> None:
        self.wandb_run.finish(quiet=True)


def open_trackers(run: Path, config: Config) -> list[TensorBoard | WeightsAndBiases]:
    """The trackers asked for. Raises UserError naming the extra that is missing."""
    trackers: list[TensorBoard | WeightsAndBiases] = []
    try:
        if config.output.tensorboard:
            trackers.append(TensorBoard(run))
        if config.output.wandb:
            trackers.append(WeightsAndBiases(run, config))
    except ImportError as error:
        extra = "tensorboard" if "tensorboard" in str(error) else "wandb"
        raise UserError(f"--{extra} needs a package that is missing: pip install 'twinstep[{extra}]'") from error
    return trackers
