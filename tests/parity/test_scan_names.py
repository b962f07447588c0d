import pytest

from parity.scan_names import by_layer

PARTS = "attn", "attn.q", "mlp"
KNOWN = ["wte", *(f"h.{i}.{part}{end}" for end in ("", " [1]") for i in range(12) for part in PARTS)]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("h.0.attn.q[11]", "h.11.attn.q"),  # called by the name of the first layer
        ("h.2.mlp[3]", "h.5.mlp"),
        ("h.mlp[3]", "h.3.mlp"),
        ("h[3].mlp", "h.3.mlp"),
        ("attn.q[1] [1]", "h.1.attn.q [1]"),
        ("attn[1]", "h.1.attn"),
        ("wte", "wte"),
        ("mlp[12]", "mlp[12]"),  # there is no such layer
        ("q[1]", "h.1.attn.q"),
        ("other[0]", "other[0]"),
    ],
)
def test_an_iteration_is_matched_to_its_layer(name, layer):
    assert by_layer(KNOWN, {name: 1}) == {layer: 1}


def test_what_could_be_two_layers_or_is_there_already_keeps_its_name():
    assert list(by_layer(["a.0.x", "b.0.x"], {"x[0]": 1})) == ["x[0]"]
    assert by_layer(["h.1.x"], {"h.1.x": 1, "h.0.x[1]": 2}) == {"h.1.x": 1, "h.0.x[1]": 2}
    assert by_layer(["h.1.x"], {"h.0.x[1]": 2, "h.1.x": 1}) == {"h.0.x[1]": 2, "h.1.x": 1}


def test_a_second_output_of_a_scanned_module_does_not_take_a_layers_name():
    """Linen's scanned modules return (carry, y): "h.0[1]" is the carry after layer 1, "h.1[0]" the y of layer 0."""
    found = {f"h.{part}[{i}]": (part, i) for i in range(3) for part in range(2)}
    renamed = by_layer(["h.0", "h.1", "h.2"], found)
    assert {name: renamed[name] for name in ("h.0", "h.1", "h.2")} == {f"h.{i}": (0, i) for i in range(3)}
    assert set(renamed.values()) == set(found.values())
