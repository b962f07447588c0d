"""TRL's real SFTTrainer on the dialogues, weights and batches of our torch loop, to the same losses. Run by hand.

It needs trl and datasets, which are no dependency of the project, in an environment of its own that sees ours too:

    python -m docs.runs trl_sft
"""

import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging as hf_logging
from trl import SFTConfig, SFTTrainer

from docs.runs.trainer import Both
from parity.convert import convert, write
from parity.formats.snapshot import Snapshot
from torch_ref.input import to_tensors
from torch_ref.models import load_weights, make_model, weight_shapes
from torch_ref.optimizer import setup_optimizers
from torch_ref.schedule import lr_multiplier
from torch_ref.step import train_step
from twinstep.config import Config, CorpusConfig, GPTConfig, OptimizerConfig, TrainConfig
from twinstep.data import Data, load_data
from twinstep.data.batches import training_rows
from twinstep.init import initial_weights
from twinstep.pretrained.huggingface import names

STEPS, MICRO, ACCUMULATION, LENGTH = 8, 2, 2, 96
CONFIG = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=264),
    data=CorpusConfig(sequence_len=LENGTH, chat=True, special_tokens="chat", data="dialogues.jsonl"),
    optimizer=OptimizerConfig(
        clip_norm=0.5, momentum_start=0.95, warmup_fraction=0.25, warmdown_fraction=0.5, weight_decay=0.1
    ),
    train=TrainConfig(steps=STEPS, batch_size=MICRO * ACCUMULATION, accumulation=ACCUMULATION),
)
Messages = list[dict[str, str]]


def dialogues() -> list[Messages]:
    """Two exchanges each, longer than half a sequence: our packing puts every one into a row of its own."""
    draw = random.Random(0)

    def text() -> str:
        return "".join(draw.choices("abcdefgh ", k=draw.randrange(11, 20)))

    roles = ("user", "assistant", "user", "assistant")
    return [[{"role": role, "content": text()} for role in roles] for _ in range(60)]


def write_dialogues(path: Path, found: list[Messages]) -> None:
    Dataset.from_list([{"messages": messages} for messages in found]).to_json(path)


def in_our_order(data: Data, found: list[Messages]) -> list[Messages]:
    """The dialogues of the run, in the order in which our batches have them."""
    training = [messages for number, messages in enumerate(found) if number % 20 != 19]
    plan = data.train.conversations.plan
    assert plan.rows == len(training), "a row holds more than one"
    rows = [training_rows(step, plan.rows, CONFIG.batch_size, CONFIG.train.seed) for step in range(STEPS)]
    return [training[plan.conversations[row]] for row in np.concatenate(rows)]


def start(config: Config) -> nn.Module:
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    return model.train()


def our_losses(config: Config, data: Data) -> Iterator[float]:
    model = start(config)
    optimizers = setup_optimizers(config, model)
    for step in range(STEPS):
        batch = to_tensors(data.train.batch(step))
        yield float(train_step(config, model, optimizers, step, batch)["loss"])


def export(config: Config, folder: Path) -> Path:
    """The same weights as a folder of Hugging Face's: what `python -m parity convert RUN OUT --to hf` writes."""
    weights = {name: tensor.numpy() for name, tensor in start(config).state_dict().items()}
    (folder / "run").mkdir()
    write(folder / "run", Snapshot(config, 0, weights), "torch", folder / "run")
    convert(folder / "run", folder / "hf", None, "hf", None)
    return folder / "hf"


class Recorded(SFTTrainer):
    """SFTTrainer as it is, but that each micro-step's loss is kept, unrounded."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


def trl_losses(config: Config, data: Data, found: list[Messages]) -> list[float]:
    with tempfile.TemporaryDirectory() as place:
        folder = export(config, Path(place))
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        both = Both(setup_optimizers(config, with_our_names(config, theirs)))
        schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: lr_multiplier(config.optimizer, STEPS, step))
        arguments = SFTConfig(
            output_dir=place,
            assistant_only_loss=True,
            max_length=LENGTH + 1,
            max_steps=STEPS,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=ACCUMULATION,
            max_grad_norm=config.optimizer.clip_norm,
            train_sampling_strategy="sequential",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
        )
        trainer = Recorded(
            theirs,
            arguments,
            train_dataset=Dataset.from_list([{"messages": messages} for messages in in_our_order(data, found)]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            optimizers=(both, schedule),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return np.array(trainer.losses).reshape(STEPS, ACCUMULATION).sum(1).tolist()


def with_our_names(config: Config, theirs: nn.Module) -> nn.Module:
    """Our model with the parameters of transformers' in it, so that our optimizers find them by our names."""
    ours = make_model(config)
    for name, their_name in names(config.model.depth).items():
        module, _, leaf = name.rpartition(".")
        setattr(ours.get_submodule(module), leaf, theirs.get_parameter(their_name))
    return ours


def main() -> None:
    print("== losses ==")
    print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, float32\n")
    print("AdamW for all                             Muon and AdamW")
    print("step  torch_ref  SFTTrainer  difference   torch_ref  SFTTrainer  difference")
    found, columns = dialogues(), []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "dialogues.jsonl")
        write_dialogues(path, found)
        base = replace(CONFIG, data=replace(CONFIG.data, data=str(path), cache_dir=place))
        data = load_data(base)
        for name in ("adamw", "muon"):
            config = replace(base, optimizer=replace(base.optimizer, optimizer=name))
            pairs = zip(our_losses(config, data), trl_losses(config, data, found), strict=True)
            columns.append([f"{a:.6f}   {b:.6f}    {abs(a - b) / a:<10.1e}" for a, b in pairs])
    for step, (left, right) in enumerate(zip(*columns, strict=True), 1):
        print(f"{step:<5} {left}   {right}".rstrip())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    hf_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    disable_progress_bars()
    main()
