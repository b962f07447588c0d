"""Each planted bug says which lines are wrong: in the port, and in torch's files as they are installed and run."""

from functools import partial
from pathlib import Path
from unittest import mock

import jax
import pytest
import torch

from parity.exercised import watch_lines
from parity.result import STAGES
from tests.helpers.jaxprs import inner_equations
from tests.parity.pair.test_ports import NAMES, port
from tests.parity.ports.truth import inside_lines, place, torch_lines, true_lines


@pytest.mark.parametrize("name", NAMES)
def test_every_bug_has_its_lines_on_both_sides(name):
    for bug in port(name).BUGS:
        wrong = true_lines(port(name), bug)
        assert wrong, bug.what
        assert not set(wrong) & set(inside_lines(bug)), bug.what
        assert torch_lines(bug), bug.what
        assert bug.stage in STAGES, bug.what


@pytest.mark.parametrize(
    ("name", "what", "beginnings"),
    [
        # one statement of the replacement differs
        ("mamba", "the convolution centred: it sees the future", ["padded = jnp.pad("]),
        # a constant, where the port uses it and not where torch is set up
        ("mixtral", "only the first expert", ["top, chosen = jax.lax.top_k("]),
        # a function of a library
        ("vit", "gelu by tanh, NNX's default", ["return self.down(gelu("]),
        # something is only removed: the line that called it, and the one that the bug names
        ("resnet", "the running variance is biased", ["running_var.value = moved(", "return MOMENTUM * old"]),
        # a lambda that computes something
        ("mixtral", "gate and up exchanged", ['Bug("gate and up exchanged"']),
    ],
)
def test_the_wrong_lines_are_those_that_the_replacement_changes(name, what, beginnings):
    bug = next(bug for bug in port(name).BUGS if bug.what == what)
    source = Path(port(name).__file__).read_text().splitlines()
    found = [source[line - 1].strip() for line in true_lines(port(name), bug)]
    assert len(found) == len(beginnings), found
    for line, beginning in zip(found, beginnings, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    "wrong",
    [
        "modeling_bert.py:BertPooler.forward: last_token_tensor = ",
        "modeling_bert.py:BertPoolers.forward: first_token_tensor = ",
        "modeling_vit.py:ViTLayer.forward: hidden_states = hidden_states + residual",  # which of the two?
        "modeling_vit.py:ViTLayer.forward[3]: hidden_states = hidden_states + residual",
        "first_token_tensor = hidden_states[:, 0]",
    ],
)
def test_a_line_that_is_not_there_or_not_alone_is_refused(wrong):
    with pytest.raises(AssertionError, match=r"statements begin so|not file\.py"):
        place(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_torch_runs_the_lines(name):
    spans = [span for bug in port(name).BUGS for span in torch_lines(bug)]
    with watch_lines(sorted({span.file for span in spans})) as lines:
        module, inputs = port(name).torch_side()
        tensors = jax.tree.map(torch.from_numpy, inputs)
        module(**tensors) if isinstance(tensors, dict) else module(*tensors)
    if lines.statements:  # nothing is watched under another coverage
        assert [span for span in spans if span.first in lines.missing[span.file]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_planted_port_computes_something_in_its_wrong_lines(name):
    module, inputs = port(name).torch_side()
    for bug in port(name).BUGS:
        with mock.patch.object(port(name), bug.name, bug.wrong):
            function, *state = port(name).jax_side(module.state_dict())
            given, named = ((*state, *inputs), {}) if isinstance(inputs, list) else (state, inputs)
            traced = jax.make_jaxpr(partial(function))(*given, **named)  # a function known before is not traced again
        lines, inside = innermost_lines(traced.jaxpr, port(name).__file__), set(inside_lines(bug))
        assert lines & {*true_lines(port(name), bug), *inside}, bug.what
        assert inside <= lines, bug.what


def innermost_lines(jaxpr, file: str) -> set[int]:
    """For each equation the innermost line in a file."""
    frames = [eqn.source_info.traceback.frames for eqn in inner_equations(jaxpr)]
    inside = [[frame.line_num for frame in stack if frame.file_name == file] for stack in frames]
    return {stack[0] for stack in inside if stack}
