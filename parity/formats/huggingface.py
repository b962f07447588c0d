"""Folders that transformers reads as its NanoChat model (transformers >= 5.0, models/nanochat): weights only.

    model.embed_tokens.weight               wte.weight
    model.layers.N.self_attn.q_proj.weight  h.N.attn.c_q.weight, and likewise k, v; o_proj is c_proj
    model.layers.N.mlp.fc1.weight           h.N.mlp.c_fc.weight; fc2 is c_proj
    lm_head.weight                          lm_head.weight

Its defaults are not upstream's, so all that decides a number is written out: rms_norm_eps is float32's machine
epsilon (default 1e-6), intermediate_size 4 D, and heads, key/value heads and rope_theta too. Its rotary table is
always float32.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from safetensors.numpy import save_file

from parity.formats.files import WEIGHTS, read_json, read_safetensors, write_json
from parity.formats.huggingface_tokenizer import read_tokenizer, write_tokenizer
from parity.formats.snapshot import Snapshot, as_numpy, check_names, weight_shapes_of
from torch_ref.models.gpt import RMS_NORM_EPS
from twinstep.config import Config, CorpusConfig, Dtype, GPTConfig, from_dict
from twinstep.data import BPETokenizer
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS

NAMES = (
    (r"wte\.weight", r"model.embed_tokens.weight"),
    (r"h\.(\d+)\.attn\.c_([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"h\.(\d+)\.attn\.c_proj\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"h\.(\d+)\.mlp\.c_fc\.weight", r"model.layers.\1.mlp.fc1.weight"),
    (r"h\.(\d+)\.mlp\.c_proj\.weight", r"model.layers.\1.mlp.fc2.weight"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
# What our model fixes. A field that is left out has transformers' default.
FIXED: dict[str, tuple[Any, Any]] = {  # name: (ours, transformers' default)
    "model_type": ("nanochat", None),
    "hidden_act": ("relu2", "relu2"),
    "attention_bias": (False, False),
    "tie_word_embeddings": (False, False),
}
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
ROTARY_DTYPE = "float32"  # transformers' own
EPS = (RMS_NORM_EPS, 1e-6)  # transformers' default is accepted: upstream's own models were converted with it
OURS = "twinstep"  # what transformers' config has no field for; it keeps this as an attribute


def read(source: Path) -> Snapshot:
    """Raises UserError for what is missing, damaged, or of another architecture."""
    config = read_config(source / "config.json")
    tensors = read_safetensors(source)
    names = {ours: hugging_face_name(ours) for ours in weight_shapes_of(config)}
    check_names(source / WEIGHTS, tensors, names.values())
    found = {ours: tensors[theirs] for ours, theirs in names.items()}
    weights = as_numpy(source / WEIGHTS, found, config.param_dtype)
    kind, tokenizer = read_tokenizer(source)
    assert isinstance(config.data, CorpusConfig)
    data = replace(config.data, tokenizer=kind)
    if tokenizer is not None:
        data = replace(data, bpe_vocab_size=BPETokenizer(tokenizer).vocab_size)
    return Snapshot(replace(config, data=data), 0, weights, tokenizer=tokenizer)


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write into the empty `folder`. Raises UserError for a model that is no gpt."""
    config = snapshot.config
    if not isinstance(config.model, GPTConfig) or not isinstance(config.data, CorpusConfig):
        raise UserError(f"hf holds a gpt, and this is a run of {config.model_name}; pass --to safetensors")
    if config.model.rotary_dtype != ROTARY_DTYPE:
        print(f"note: transformers rounds the rotary table to float32, this run to {config.model.rotary_dtype}")
    bos = write_tokenizer(folder, config, snapshot.tokenizer)
    write_json(folder / "config.json", make_config(config, bos))
    arrays = {hugging_face_name(name): array for name, array in snapshot.weights.items()}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})


def make_config(config: Config, bos: int | None) -> dict[str, Any]:
    """transformers' config.json."""
    model, data = config.model, config.data
    assert isinstance(model, GPTConfig)
    assert isinstance(data, CorpusConfig)
    return {
        "architectures": ["NanoChatForCausalLM"],
        **{name: value for name, (value, _) in FIXED.items()},
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": 4 * model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": data.sequence_len,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "final_logit_softcapping": model.softcap,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": bos,  # the BOS token of a document ends the one before
        "pad_token_id": None,
        "dtype": config.param_dtype,
        **({} if model.rotary_dtype == ROTARY_DTYPE else {OURS: {"rotary_dtype": model.rotary_dtype}}),
    }


def read_config(path: Path) -> Config:
    """Our configuration of a model of transformers'. Raises UserError naming a field that is not supported."""
    values = read_json(path)
    for name, (ours, default) in FIXED.items():
        if values.get(name, default) != ours:
            raise UserError(f"{path} has {name} {values.get(name, default)!r}; only {ours!r} is supported")
    for name in COUNTS:
        if not isinstance(values.get(name), int) or values[name] < 1:
            raise UserError(f"{path} has {name} {values.get(name)!r}, which is no count; save the model again")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    head_dim = values.get("head_dim") or width // heads
    rope = rope_parameters(values)
    wanted = {
        "intermediate_size": (values.get("intermediate_size"), 4 * width),
        "head_dim": (head_dim * heads, width),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for name, (found, supported) in wanted.items():
        if found != supported:
            raise UserError(f"{path} has {name} {found!r}; only {supported!r} is supported")
    if values.get("rms_norm_eps", 1e-6) not in EPS:
        raise UserError(f"{path} has rms_norm_eps {values['rms_norm_eps']!r}; only {RMS_NORM_EPS} is supported")
    if values.get("rms_norm_eps", 1e-6) != RMS_NORM_EPS:
        print(f"note: {path} has rms_norm_eps 1e-06; the run computes with {RMS_NORM_EPS}, as nanochat itself does")
    try:
        base = base_config(values)
        assert isinstance(base.model, GPTConfig)
        assert isinstance(base.data, CorpusConfig)
        model = replace(
            base.model,
            depth=values["num_hidden_layers"],
            d_model=width,
            head_dim=head_dim,
            kv_heads=values.get("num_key_value_heads") or heads,
            vocab_size=values["vocab_size"],
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            softcap=float(values.get("final_logit_softcapping", 15.0)),
        )
        return replace(base, model=model, data=replace(base.data, sequence_len=values["max_position_embeddings"]))
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


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


def rope_parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings, which older files keep as rope_theta and rope_scaling."""
    older = {"rope_theta": values.get("rope_theta"), **(values.get("rope_scaling") or {})}
    rope = values.get("rope_parameters") or older
    return {name: value for name, value in rope.items() if value is not None}


def hugging_face_name(name: str) -> str:
    """Our name of a parameter, as transformers calls it."""
    for ours, theirs in NAMES:
        if match := re.fullmatch(ours, name):
            return match.expand(theirs)
    raise AssertionError(name)
