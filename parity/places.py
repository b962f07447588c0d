"""Where each number of a check is computed, in torch_ref and in jax_impl: the one table of files and functions."""

import re
from dataclasses import replace
from typing import NamedTuple

from jax_impl import parallel
from parity.result import Divergence, StageResult
from torch_ref.optimizer import optimizer_groups
from twinstep.config import Config

Code = dict[str, str]  # framework -> "file function", several of them after commas


class Place(NamedTuple):
    """What computes the tensors of a stage whose names match `tensor`, in groups with this algorithm if one is named.

    The function is in a file of this name in both packages, unless `jax` says otherwise.
    """

    stage: str
    tensor: str
    torch: str
    jax: str = ""
    algorithm: str = ".*"


FORWARD = (  # activation -> what computes it
    (r".*attn\.c_[qkv]|.*mlp\.c_fc", "models/layers.py Linear.forward, models/gpt.py rms_norm", ""),
    (r".*c_proj|lm_head|linear|fc\d", "models/layers.py Linear.forward", ""),
    (r".*attn\.[qk]", "models/gpt.py apply_rotary, models/gpt.py rms_norm", ""),
    (r".*attn\.y", "models/attention.py causal_attention", "ATTENTION"),
    (r".*attn", "models/gpt.py CausalSelfAttention.forward", ""),
    (r".*relu_squared|.*mlp", "models/gpt.py MLP.forward", ""),
    (r"h\.\d+", "models/gpt.py Block.forward", ""),
    (r"wte|embedding", "models/layers.py Embedding.forward", ""),
    (r"embed_norm|final_norm", "models/gpt.py rms_norm", ""),
    (r"norm", "models/batch_norm.py BatchNorm.forward", ""),
    (r"dropout", "models/mlp.py Dropout.forward", ""),
)
LOGITS = {
    "gpt": "models/gpt.py GPT.head",
    "linear": "models/linear.py LinearClassifier.forward",
    "embedding": "models/embedding.py EmbeddingModel.forward",
    "mlp": "models/mlp.py MLPClassifier.forward",
}

# The first that fits. The last of each stage fits all, and stands for the stage.
PLACES = (
    Place("data", "", "input.py train_batches"),
    Place("weights", r"bridge|.* \(carried\)", "models/__init__.py load_weights", "parity/own_bridge.py torch_to_jax"),
    Place("weights", "", "models/__init__.py load_weights", "models/__init__.py load_tree"),
    Place("schedule", "logged .*", "step.py train_step", "optimizer.py logged_learning_rate"),
    Place("schedule", ".* learning_rate", "schedule.py lr_multiplier, optimizer.py optimizer_groups"),
    Place("schedule", ".* weight_decay", "schedule.py decay_multiplier, optimizer.py optimizer_groups"),
    Place("schedule", ".* momentum", "schedule.py muon_momentum"),
    Place("schedule", "", "schedule.py lr_multiplier, optimizer.py optimizer_groups"),
    *(Place("activations", name, torch, jax) for name, torch, jax in FORWARD),
    Place("activations", "", "models/__init__.py forward"),
    Place("loss", "training step", "step.py train_step"),
    Place("loss", "", "losses.py loss_sums", "head_loss.py batch_loss"),
    Place("gradients", "", "step.py summed_gradients"),
    Place("clip", "", "optimizer.py clip_by_global_norm"),
    Place("update", "", "muon.py Muon.step", "muon.py muon", "muon"),
    Place("update", "", "optimizer.py setup_optimizers", "optimizer.py make_transform", "adamw|sgd"),
    Place(
        "update", "", "muon.py Muon.step, optimizer.py setup_optimizers", "muon.py muon, optimizer.py make_transform"
    ),
    Place("parameters", r"buffers|norm\.running_.*", "models/batch_norm.py BatchNorm.forward"),
    Place("parameters", "", "step.py train_step"),
    Place("trajectory", "", "step.py train_step", "step.py train_step, checkpoint.py restore"),
    Place("evaluation", "val_.*", "evaluate.py metrics"),
    Place("evaluation", "", "step.py eval_step"),
    Place("generation", "sampled tokens, generate_in_chunks", "generate.py generate", "decoding.py generate_in_chunks"),
    Place("generation", "sampled tokens.*", "generate.py generate"),
    Place("generation", "likeliest tokens", "sampling.py sample"),
    Place("generation", "logits, forward", "models/gpt.py GPT.forward"),
    Place("generation", "", "models/gpt.py GPT.decode, models/cache.py cached_attention"),
)


def code_of(stage: str, tensor: str = "", algorithm: str = "", model: str = "") -> Code:
    """Of a tensor, or of a stage as a whole; {} for a stage that the table does not have."""
    name = re.sub(r"( \[\d+\]| #\d+)+$", "", tensor)
    if stage == "activations" and name == "logits":
        return written(Place(stage, name, LOGITS[model]))
    fitting = [p for p in PLACES if p.stage == stage and re.fullmatch(p.algorithm, algorithm)]
    found = next((p for p in fitting if p.tensor == "" or re.fullmatch(p.tensor, name)), None)
    return {} if found is None else written(found)


def written(place: Place) -> Code:
    """With the packages."""
    return {"torch": in_package("torch_ref", place.torch), "jax": in_package("jax_impl", place.jax or place.torch)}


def in_package(package: str, functions: str) -> str:
    """ "muon.py muon" -> "jax_impl/muon.py muon"."""
    if functions == "ATTENTION":  # the form of it that these devices take
        attention = parallel.attention()
        return f"{attention.__module__.replace('.', '/')}.py {attention.__name__}"
    return ", ".join(name if name.startswith("parity/") else f"{package}/{name}" for name in functions.split(", "))


def name_stages(stages: dict[str, StageResult]) -> dict[str, StageResult]:
    """The stages of a check of our own models, each with its code."""
    return {name: replace(stage, code=code_of(name)) for name, stage in stages.items()}


def name_tensor(first: Divergence | None, config: Config) -> Divergence | None:
    """The first divergence with the code that computes its tensor."""
    if first is None:
        return None
    groups = optimizer_groups(config)
    algorithm = groups[first.group].algorithm if first.group in groups else ""
    return replace(first, code=code_of(first.stage, first.tensor, algorithm, config.model_name))
