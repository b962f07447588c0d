"""What the tests of both `generate` commands share."""

from twinstep.config import Config, CorpusConfig, GPTConfig, TrainConfig

# Nothing square, grouped key/value heads, and head and projections that are not zero.
CONFIG = Config(
    model=GPTConfig(depth=2, d_model=32, head_dim=8, kv_heads=2, vocab_size=256),
    data=CorpusConfig(sequence_len=32),
    train=TrainConfig(init="nonzero", seed=3),
)
