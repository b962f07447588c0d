"""The real transformers.Trainer on the same weights and batches as our torch loop, to the same losses."""

import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging as hf_logging

from docs.hooks import select_code
from torch_ref.losses import softmax_cross_entropy
from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.optimizer import setup_optimizers
from torch_ref.schedule import lr_multiplier
from torch_ref.step import train_step
from twinstep.config import Config, CorpusConfig, GPTConfig, OptimizerConfig, TrainConfig
from twinstep.init import initial_weights

HF_IGNORE = -100  # transformers counts labels by it; ours is -1
STEPS, MICRO, ACCUMULATION, LENGTH, VOCABULARY = 8, 2, 2, 12, 61
CONFIG = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=VOCABULARY),
    data=CorpusConfig(sequence_len=LENGTH),
    optimizer=OptimizerConfig(
        clip_norm=0.5, momentum_start=0.95, warmup_fraction=0.25, warmdown_fraction=0.5, weight_decay=0.1
    ),
    train=TrainConfig(steps=STEPS, batch_size=MICRO * ACCUMULATION, accumulation=ACCUMULATION, dtype="float64"),
)


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Every sequence of the run in its order, and targets of which a fifth is ignored."""
    random = np.random.default_rng(0)
    count = STEPS * ACCUMULATION * MICRO
    tokens, targets = random.integers(0, VOCABULARY, (2, count, LENGTH))
    return tokens, np.where(random.random(targets.shape) < 0.2, -1, targets)


class Sequences(Dataset):
    def __init__(self):
        self.tokens, targets = examples()
        self.labels = np.where(targets == -1, HF_IGNORE, targets)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        return {"tokens": torch.tensor(self.tokens[n]), "labels": torch.tensor(self.labels[n])}


class ForTrainer(nn.Module):
    """Our model under the names that Trainer expects: it calls model(**inputs)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.model(tokens)}


class Both(torch.optim.Optimizer):
    """A list of optimizers as one, since Trainer takes one. A scheduler reaches the groups of all."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        super().__init__([p for o in optimizers for group in o.param_groups for p in group["params"]], {})
        self.optimizers = optimizers
        self.share_groups()

    def share_groups(self) -> None:
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure=None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Accelerate calls it before the first step; torch then makes new groups, which must be the shared ones."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.share_groups()


def start() -> nn.Module:
    model = make_model(CONFIG)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    return model.train()


def our_losses(config: Config) -> Iterator[float]:
    model = start()
    optimizers = setup_optimizers(config, model)
    tokens, targets = (torch.tensor(x.reshape(STEPS, ACCUMULATION, MICRO, LENGTH).copy()) for x in examples())
    for step in range(STEPS):
        yield float(
            train_step(config, model, optimizers, step, {"tokens": tokens[step], "targets": targets[step]})["loss"]
        )


def trainer_losses(config: Config) -> list[float]:
    losses = np.zeros(STEPS * ACCUMULATION)
    calls = iter(range(STEPS * ACCUMULATION))

    def compute_loss(outputs, labels, num_items_in_batch):
        """num_items_in_batch: targets that count in the whole step, as in our loop."""
        targets = torch.where(labels == HF_IGNORE, -1, labels)
        loss = softmax_cross_entropy(outputs["logits"], targets).sum() / num_items_in_batch
        losses[next(calls)] = loss.item()
        return loss

    model = start()
    both = Both(setup_optimizers(config, model))
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: lr_multiplier(config.optimizer, STEPS, step))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=ACCUMULATION,
            max_grad_norm=config.optimizer.clip_norm,
            train_sampling_strategy="sequential",
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
        )
        trainer = Trainer(
            ForTrainer(model),
            arguments,
            train_dataset=Sequences(),
            optimizers=(both, schedule),
            compute_loss_func=compute_loss,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses.reshape(STEPS, ACCUMULATION).sum(1).tolist()


def same_losses() -> None:
    print("== losses ==")
    print("AdamW for all                              Muon and AdamW")
    print("step  torch_ref  Trainer   difference      torch_ref  Trainer   difference")
    columns = []
    for name in ("adamw", "muon"):
        config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, optimizer=name))
        pairs = zip(our_losses(config), trainer_losses(config), strict=True)
        columns.append([f"{a:.6f}   {b:.6f}  {within(a, b)}" for a, b in pairs])
    for step, (left, right) in enumerate(zip(*columns, strict=True), 1):
        print(f"{step:<5} {left:<36} {right}")


def within(a: float, b: float) -> str:
    gap = abs(a - b) / a
    return "<= 1e-12" if gap <= 1e-12 else f"{gap:.1e}"


# What Trainer is told, and the statement of our loop that does it.
OPTIONS = {
    "ddp_backend": "torch_ref/parallel.py wrap",
    "fsdp": "jax_impl/parallel.py fsdp_steps",
    "per_device_train_batch_size": 'torch_ref/train.py train > "batches = train_batches"',
    "gradient_accumulation_steps": 'torch_ref/step.py summed_gradients > "for number"',
    "average_tokens_across_devices": 'torch_ref/step.py train_step > "dist.all_reduce(targets)"',
    "max_grad_norm": 'torch_ref/step.py train_step > "grad_norm = clip"',
    "optim": 'torch_ref/train.py train > "optimizers = setup"',
    "lr_scheduler_type": 'torch_ref/step.py train_step > "learning_rate = set_schedule"',
    "bf16": 'torch_ref/models/__init__.py make_model > "dtype, param_dtype"',
    "gradient_checkpointing": 'torch_ref/models/gpt.py GPT.hidden > "x_BTD = checkpoint"',
    "eval_strategy": 'torch_ref/train.py train > "evaluating = "',
    "metric_for_best_model": 'torch_ref/train.py train > "improved = "',
    "logging_steps": 'torch_ref/train.py record > "if step %"',
    "save_steps": 'torch_ref/train.py train > "saving = "',
    "save_total_limit": 'torch_ref/train.py train.run_save > "remove_old"',
    "seed": 'torch_ref/train.py train > "torch.manual_seed"',
}


def table() -> None:
    """Raises KeyError for an option that transformers no longer has, and the hooks' error for a line that is gone."""
    print("== table of options ==")
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    print("| `TrainingArguments` | its default | the line of our loop |\n|---|---|---|")
    for option, selection in OPTIONS.items():
        line = select_code(selection).splitlines()[0]
        print(f"| `{option}` | `{fields[option].default}` | `{line}` in `{selection.split(' ')[0]}` |")
    print("== table of names ==")
    print("| in older samples | today |\n|---|---|")
    for old, new in {"evaluation_strategy": "eval_strategy", "warmup_ratio": "warmup_steps"}.items():
        assert old not in fields
        assert new in fields
        print(f"| `{old}` | `{new}` |")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    hf_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    same_losses()
    table()
