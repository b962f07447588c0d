"""Folders of transformers' NanoChat model (transformers >= 5.0, models/nanochat).

    model.embed_tokens.weight               wte.weight
    model.layers.N.self_attn.q_proj.weight  h.N.attn.c_q.weight, and likewise k, v; o_proj is c_proj
    model.layers.N.mlp.fc1.weight           h.N.mlp.c_fc.weight; fc2 is c_proj
    lm_head.weight                          lm_head.weight

A field that is left out has transformers' default, which is not always upstream's. Its rotary table is always float32.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from twinstep.config import Config, CorpusConfig, Dtype, GPTConfig, from_dict
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS
from twinstep.pretrained.arrays import check_names
from twinstep.pretrained.files import read_json, read_tokenizer, with_tokenizer
from twinstep.pretrained.safetensors_file import WEIGHTS, read_safetensors

BLOCK = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
RMS_NORM_EPS = 1.1920929e-07  # float32's machine epsilon, which our GPT computes with
# What our model fixes.
FIXED: dict[str, tuple[Any, Any]] = {  # name: (ours, transformers' default)
    "model_type": ("nanochat", None),
    "hidden_act": ("relu2", "relu2"),
    "attention_bias": (False, False),
    "tie_word_embeddings": (False, False),
}
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
EPS = (RMS_NORM_EPS, 1e-6)  # transformers' default is accepted: upstream's own models were converted with it
ROTARY_DTYPE = "float32"  # transformers' own
OURS = "twinstep"  # what transformers' config has no field for; it keeps this as an attribute


def names(depth: int) -> dict[str, str]:
    """Our names of a gpt's parameters -> transformers'."""
    blocks = {
        f"h.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(depth)
        for ours, theirs in BLOCK.items()
    }
    return {"wte.weight": "model.embed_tokens.weight", **blocks, "lm_head.weight": "lm_head.weight"}


def read_config(source: Path) -> Config:
    """Our configuration of a model of transformers'. Raises UserError naming what is not supported, or damaged."""
    path = source / "config.json"
    values = read_json(path)
    try:
        check_fields(path, values)
        config = make_config(values)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: {error}; save the model again") from error
    text = read_tokenizer(source)
    assert isinstance(config.data, CorpusConfig)
    return with_tokenizer(replace(config, data=replace(config.data, tokenizer="bpe")), text)


def read_weights(source: Path, config: Config) -> dict[str, np.ndarray]:
    """The weights of the model that `read_config` found, by our names. Raises UserError if they are others."""
    assert isinstance(config.model, GPTConfig)
    arrays, theirs = read_safetensors(source), names(config.model.depth)
    check_names(source / WEIGHTS, arrays, theirs.values())
    path = source / "config.json"
    if read_json(path).get("rms_norm_eps", 1e-6) != RMS_NORM_EPS:
        print(f"note: {path} has rms_norm_eps 1e-06; the run computes with {RMS_NORM_EPS}, as nanochat itself does")
    return {name: arrays[their_name] for name, their_name in theirs.items()}


def check_fields(path: Path, values: Mapping[str, Any]) -> None:
    """Raises UserError naming a field whose model computes otherwise than ours."""
    for name, (ours, default) in FIXED.items():
        if values.get(name, default) != ours:
            raise UserError(f"{path} has {name} {values.get(name, default)!r}; only {ours!r} is supported")
    for name in COUNTS:
        if not isinstance(values.get(name), int) or values[name] < 1:
            raise UserError(f"{path} has {name} {values.get(name)!r}, which is no count; save the model again")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    wanted = {
        "intermediate_size": (values.get("intermediate_size"), 4 * width),
        "head_dim": (head_dim(values) * heads, width),
        "rope_type": (rope_parameters(values).get("rope_type", "default"), "default"),
    }
    for name, (found, supported) in wanted.items():
        if found != supported:
            raise UserError(f"{path} has {name} {found!r}; only {supported!r} is supported")
    eps = values.get("rms_norm_eps", 1e-6)
    if eps not in EPS:
        raise UserError(f"{path} has rms_norm_eps {eps!r}; only {RMS_NORM_EPS} is supported")


def make_config(values: Mapping[str, Any]) -> Config:
    """Our configuration of a model of transformers'."""
    base = base_config(values)
    if not isinstance(base.model, GPTConfig) or not isinstance(base.data, CorpusConfig):
        raise UserError(f"its {OURS} is of {base.model_name}, not of gpt")
    model = replace(
        base.model,
        depth=values["num_hidden_layers"],
        d_model=values["hidden_size"],
        head_dim=head_dim(values),
        kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
        vocab_size=values["vocab_size"],
        rope_theta=float(rope_parameters(values).get("rope_theta", 10000.0)),
        softcap=float(values.get("final_logit_softcapping", 15.0)),
    )
    return replace(base, model=model, data=replace(base.data, sequence_len=values["max_position_embeddings"]))


def base_config(values: Mapping[str, Any]) -> Config:
    """The default run, in the model's dtypes. Raises UserError for a dtype that is none."""
    ours = values.get(OURS, {})
    if "model" in ours:  # exports used to hold the configuration of the whole run
        return from_dict(ours)
    base = DEFAULTS["gpt"]
    assert isinstance(base.model, GPTConfig)
    rotary_dtype = ours.get("rotary_dtype", ROTARY_DTYPE)
    if rotary_dtype not in get_args(Dtype):
        raise UserError(f"{OURS} has rotary_dtype {rotary_dtype!r}; it must be one of {', '.join(get_args(Dtype))}")
    train = replace(base.train, dtype="float64") if values.get("dtype") == "float64" else base.train
    return replace(base, model=replace(base.model, rotary_dtype=rotary_dtype), train=train)


def head_dim(values: Mapping[str, Any]) -> int:
    """Channels of a head, which older files leave out."""
    return values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]


def rope_parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings, which older files keep as rope_theta and rope_scaling."""
    older = {"rope_theta": values.get("rope_theta"), **(values.get("rope_scaling") or {})}
    rope = values.get("rope_parameters") or older
    return {name: value for name, value in rope.items() if value is not None}
