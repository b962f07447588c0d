import pytest

from jax_impl.plot import main
from twinstep.errors import run_command
from twinstep.run_dir import append_metrics


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, as either framework leaves them, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("jax-gpt-1", "torch-gpt-1"):
        (tmp_path / name).mkdir()
        append_metrics(tmp_path / name, {"step": 0, "val_loss": 3.0})
        append_metrics(tmp_path / name, {"step": 1, "loss": 2.5})
    return tmp_path


def test_runs_are_overlaid_into_the_file_that_is_asked_for(runs, capsys):
    assert run_command(main, ["jax-gpt-1", "torch-gpt-1", "--out", "both.png"]) == 0
    assert capsys.readouterr().out == "both.png\n"
    assert (runs / "both.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_name_of_its_own_when_none_is_given(runs, capsys):
    assert run_command(main, ["jax-gpt-1"]) == 0
    assert (runs / "loss.png").exists()
    assert not (runs / "jax-gpt-1" / "loss.png").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no run to plot; pass one run directory or several"),
        (["nowhere"], "nowhere/metrics.jsonl cannot be read"),
        (["jax-gpt-1", "nowhere"], "nowhere/metrics.jsonl cannot be read"),
        (["jax-gpt-1", "--out", "loss.txt"], "loss.txt has no suffix of a picture"),
        (["jax-gpt-1", "--smooth", "1"], "--smooth"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(argv, says, runs, capsys):
    before = sorted(runs.rglob("*"))
    assert run_command(main, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert sorted(runs.rglob("*")) == before
