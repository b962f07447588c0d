"""One preset per model, and the named variants of the GPT."""

from twinstep.config import (
    Config,
    CorpusConfig,
    EmbeddingConfig,
    GPTConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    TabularConfig,
    TrainConfig,
)

# What `python -m jax_impl.train MODEL` trains when no other flag is given.
DEFAULTS: dict[str, Config] = {
    "gpt": Config(
        # Tuned for three minutes on two cores: four small heads learn far faster here than two large ones.
        model=GPTConfig(depth=4, d_model=128, head_dim=32),
        data=CorpusConfig(sequence_len=256),
        optimizer=OptimizerConfig(matrix_lr=0.03, warmdown_fraction=0.8),
        train=TrainConfig(steps=700, batch_size=8, eval_batches=24),
    ),
    "linear": Config(
        model=LinearConfig(),
        data=TabularConfig(),
        train=TrainConfig(steps=500, batch_size=128),
    ),
    "embedding": Config(
        model=EmbeddingConfig(),
        data=CorpusConfig(sequence_len=64),
        train=TrainConfig(steps=300, batch_size=16),
    ),
    "mlp": Config(
        model=MLPConfig(),
        data=TabularConfig(),
        train=TrainConfig(steps=600, batch_size=128),
    ),
}

# Chosen by `--preset`. `parity` uses every feature: grouped key/value heads, non-square matrices, masked targets;
# `nanochat-d20` is upstream's speedrun model.
PRESETS: dict[str, Config] = {
    "parity": Config(
        model=GPTConfig(depth=2, d_model=128, head_dim=32, kv_heads=2, vocab_size=256),
        data=CorpusConfig(sequence_len=64, masked_targets=0.2),
        optimizer=OptimizerConfig(
            weight_decay=0.1,
            matrix_weight_decay=0.1,
            decay_schedule="linear",
            clip_norm=1.75,
            warmup_fraction=0.3,
            warmdown_fraction=0.4,
            final_lr_fraction=0.1,
            momentum_steps=8,
        ),
        train=TrainConfig(steps=20, batch_size=4, accumulation=2),
    ),
    "nanochat-d20": Config(
        model=GPTConfig(depth=20, head_dim=128, rotary_dtype="bfloat16"),
        data=CorpusConfig(sequence_len=2048, tokenizer="bpe", bpe_vocab_size=65536),
        train=TrainConfig(tokens_per_parameter=20, batch_tokens=524288, dtype="bfloat16", matmul_precision="default"),
    ),
}
