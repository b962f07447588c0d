"""Configuration: frozen dataclasses, validated where they are made.

Every field is a command-line flag of the same name (`sequence_len` is `--sequence-len`); the string under a
field is its help text and states its unit. `BOUNDS` of each class holds the range of its numeric fields.
"""

from twinstep.config.as_dict import from_dict, to_dict
from twinstep.config.bounds import COUNT, NATURAL, Bound, check_bounds, check_shards, check_text, flag
from twinstep.config.data import CorpusConfig, DataConfig, TabularConfig
from twinstep.config.models import MODELS, Dtype, EmbeddingConfig, GPTConfig, LinearConfig, MLPConfig, ModelConfig
from twinstep.config.optimizer import OptimizerConfig
from twinstep.config.run import Config, DeviceConfig, OutputConfig, TrainConfig

__all__ = [
    "COUNT",
    "MODELS",
    "NATURAL",
    "Bound",
    "Config",
    "CorpusConfig",
    "DataConfig",
    "DeviceConfig",
    "Dtype",
    "EmbeddingConfig",
    "GPTConfig",
    "LinearConfig",
    "MLPConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "TabularConfig",
    "TrainConfig",
    "check_bounds",
    "check_shards",
    "check_text",
    "flag",
    "from_dict",
    "to_dict",
]
