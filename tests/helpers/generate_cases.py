"""What the tests of both `generate` commands share."""

from twinstep.config import Config, CorpusConfig, GPTConfig, TrainConfig

# Nothing square, grouped key/value heads, and head and projections that are not zero.
CONFIG = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=256),
    data=CorpusConfig(sequence_len=32),
    train=TrainConfig(init="nonzero", seed=3),
)

BAD_FLAGS = [
    ("--max-tokens", "0"),
    ("--max-tokens", "2000000"),
    ("--max-tokens", "many"),
    ("--temperature", "-0.1"),
    ("--temperature", "nan"),
    ("--temperature", "inf"),
    ("--top-k", "0"),
    ("--top-p", "0"),
    ("--top-p", "1.01"),
    ("--seed", "-1"),
    ("--seed", "4294967296"),
    ("--samples", "0"),
    ("--step", "-1"),
    ("--step", "99"),
    ("--stop", ""),
    ("--prompt", "\udcff"),
    ("--no-such-flag", "1"),
]
