"""`parity shapes`: what flows through both frameworks, from the batch to the scalar loss."""

import pytest

from parity.check_configs import subject
from parity.cli import main
from parity.shapes import shape_flow
from twinstep.data import load_data
from twinstep.resolve import fill_in


def flow(model: str):
    config = subject(model, "float32", 3, 0)
    data = load_data(config)
    return config, shape_flow(fill_in(config, data), data.train.batch(0))


def test_the_gpt_flows_from_tokens_to_a_scalar_in_equal_shapes():
    config, rows = flow("gpt")
    B, T = config.batch_size // config.train.accumulation, config.data.sequence_len
    shapes = {name: (torch_shape, jax_shape) for name, torch_shape, jax_shape in rows}
    C, H, K = config.model.head_dim, config.model.heads, config.model.key_value_heads
    assert shapes["tokens"] == ((B, T), (B, T))
    assert shapes["h.0.attn.q"] == ((B, T, H, C), (B, T, H, C))
    assert shapes["h.1.attn.k"] == ((B, T, K, C), (B, T, K, C))
    assert shapes["logits"] == ((B, T, 256), (B, T, 256))
    assert rows[-1][1:] == ((), ())
    assert all(a == b for a, b in shapes.values() if a is not None and b is not None)


@pytest.mark.parametrize(("model", "shape"), [("linear", "32 × 10"), ("mlp", "32 × 48"), ("embedding", "8 × 16 × 24")])
def test_the_command_prints_both_sides(model, shape, capsys):
    assert main(["shapes", model]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if shape in line]
    assert any(line.count(shape) == 2 for line in lines)
