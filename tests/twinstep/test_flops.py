"""The FLOP counts against hand-counted cases and against the shapes of the real models."""

from dataclasses import replace

import pytest

from twinstep.config import Config, EmbeddingConfig, GPTConfig, LinearConfig, MLPConfig, OptimizerConfig, TrainConfig
from twinstep.errors import UserError
from twinstep.flops import flops_per_token, matrix_flops_per_step, matrix_shapes, newton_schulz_flops, parameter_count

SMALL = {
    "gpt": GPTConfig(depth=3, d_model=32, head_dim=8, kv_heads=2, vocab_size=50),
    "linear": LinearConfig(features=7, classes=5),
    "embedding": EmbeddingConfig(d_model=6, vocab_size=11),
    "mlp": MLPConfig(hidden=9, features=7, classes=5),
}


@pytest.mark.parametrize("name", SMALL)
def test_counted_parameters_are_those_of_the_real_model(name):
    from jax_impl.models import make_model
    from jax_impl.tree import flatten

    params = flatten(make_model(Config(model=SMALL[name])).params)
    assert parameter_count(SMALL[name]) == sum(p.size for p in params.values())
    for matrix, shape in matrix_shapes(SMALL[name]).items():
        assert params[matrix].shape == shape, matrix


def test_nanochat_d20_counts_as_upstream_prints_it():
    # upstream's speedrun log for depth 20, vocabulary 65,536, T 2,048: 560,988,160 parameters, 3.491758e9 FLOPs
    d20 = GPTConfig(depth=20, vocab_size=65536)
    assert parameter_count(d20) == 560_988_160
    assert flops_per_token(d20, 2048) == 3_491_758_080


def test_matrix_flops_of_a_tiny_gpt_are_those_counted_by_hand():
    config = Config(
        model=GPTConfig(depth=1, d_model=4, head_dim=2, vocab_size=3),
        train=TrainConfig(batch_size=2),
        optimizer=OptimizerConfig(newton_schulz_steps=1),
    )
    products = 6 * (2 * 5) * (4 * 4 * 4 + 2 * 4 * 16 + 3 * 4)  # ten tokens
    # Two sequences, two heads of two channels, 1+2+3+4+5 pairs, 2 products forward and 4 backward, 2 per multiply-add.
    attention = 2 * 2 * 2 * 15 * 6 * 2
    newton_schulz = 4 * (4 * 16 * 4 + 2 * 64) + 2 * (4 * 16 * 16 + 2 * 64)
    assert newton_schulz_flops(config) == newton_schulz
    assert matrix_flops_per_step(config, sequence_len=5) == products + attention + newton_schulz


def test_no_orthogonalization_is_counted_where_muon_does_not_train():
    config = Config(model=SMALL["gpt"])
    for optimizer in (OptimizerConfig(optimizer="adamw"), OptimizerConfig(matrix_optimizer="sgd")):
        assert newton_schulz_flops(replace(config, optimizer=optimizer)) == 0
    assert newton_schulz_flops(config) > 0


def test_sizes_that_the_data_has_not_given_yet_are_asked_for():
    with pytest.raises(UserError, match="vocabulary is known"):
        flops_per_token(GPTConfig())
    with pytest.raises(UserError, match="features is known"):
        parameter_count(LinearConfig(classes=2))
