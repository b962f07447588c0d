"""Folders that transformers reads as its NanoChat model (transformers >= 5.0, models/nanochat): weights only.

Its defaults are not upstream's, so all that decides a number is written out: rms_norm_eps is float32's machine
epsilon (default 1e-6), intermediate_size 4 D, and heads, key/value heads and rope_theta too. Its rotary table is
always float32.
"""

from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from parity.formats.files import write_json
from parity.formats.huggingface_tokenizer import write_tokenizer
from parity.formats.snapshot import Snapshot
from twinstep.config import Config, CorpusConfig, GPTConfig
from twinstep.data import BPETokenizer
from twinstep.data.chat import ASSISTANT_END
from twinstep.errors import UserError
from twinstep.pretrained import huggingface
from twinstep.pretrained.files import byte_tokenizer, read_tokenizer
from twinstep.pretrained.huggingface import FIXED, OURS, RMS_NORM_EPS, ROTARY_DTYPE
from twinstep.pretrained.safetensors_file import WEIGHTS


def read(source: Path) -> Snapshot:
    """Raises UserError for what is missing, damaged, or of another architecture."""
    config = huggingface.read_config(source)
    weights = huggingface.read_weights(source, config)
    text = read_tokenizer(source)
    return Snapshot(config, 0, weights, tokenizer=None if text is None or byte_tokenizer(text) else text)


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write into the empty `folder`. Raises UserError for a model that is no gpt."""
    config = snapshot.config
    if not isinstance(config.model, GPTConfig) or not isinstance(config.data, CorpusConfig):
        raise UserError(f"hf holds a gpt, and this is a run of {config.model_name}; pass --to safetensors")
    if config.model.rotary_dtype != ROTARY_DTYPE:
        print(f"note: transformers rounds the rotary table to float32, this run to {config.model.rotary_dtype}")
    tokenizer = write_tokenizer(folder, config, snapshot.tokenizer)
    write_json(folder / "config.json", make_config(config, tokenizer))
    names = huggingface.names(config.model.depth)
    arrays = {names[name]: array for name, array in snapshot.weights.items()}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})


def make_config(config: Config, tokenizer: BPETokenizer | None) -> dict[str, Any]:
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
        "bos_token_id": tokenizer.bos if tokenizer else None,
        "eos_token_id": end_tokens(tokenizer) if tokenizer else None,
        "pad_token_id": None,
        "dtype": config.param_dtype,
        **({} if model.rotary_dtype == ROTARY_DTYPE else {OURS: {"rotary_dtype": model.rotary_dtype}}),
    }


def end_tokens(tokenizer: BPETokenizer) -> int | list[int]:
    """Where transformers stops: the BOS token of a document ends the one before, and the assistant has an end too."""
    end = tokenizer.special.get(ASSISTANT_END)
    return tokenizer.bos if end is None else [tokenizer.bos, end]
