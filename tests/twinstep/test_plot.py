import numpy as np
import pytest
from matplotlib import pyplot as plt

from twinstep.errors import UserError
from twinstep.plot import distinct_names, plot_loss, smooth
from twinstep.run_dir import append_metrics


@pytest.fixture
def make_run(tmp_path):
    def make(name: str, losses=(3.0, 2.0, 1.0)):
        run = tmp_path / name
        run.mkdir(parents=True)
        append_metrics(run, {"step": 0, "val_loss": 4.0})
        for step, loss in enumerate(losses, 1):
            append_metrics(run, {"step": step, "loss": loss, "grad_norm": 1.0})
        append_metrics(run, {"step": len(losses), "val_loss": 1.5})
        return run

    return make


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open for inspection."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    yield figures
    monkeypatch.undo()
    plt.close("all")


def test_smoothing_is_a_weighted_mean_of_what_came_before():
    second = (4.0 * 0.1 + 2.0) / 1.1
    np.testing.assert_allclose(smooth(np.array([4.0, 2.0, 8.0])), [4.0, second, (second * 0.2 + 8.0) / 1.2], rtol=1e-15)
    spike = np.zeros(400)
    spike[200] = 1.0
    np.testing.assert_allclose(smooth(spike)[200:204], 0.1 * 0.9 ** np.arange(4), rtol=1e-12)
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)
    assert smooth(np.array([])).shape == (0,)


@pytest.mark.parametrize("count", [2, 6, 60, 180, 1000])
def test_behind_a_falling_line_the_smoothed_curve_lags_by_at_most_a_tenth_of_the_fall(count):
    line = np.linspace(7.0, 2.0, count)
    lag = smooth(line) - line
    assert (lag >= -1e-12).all()
    assert (lag <= 0.1 * (7.0 - line) + 1e-12).all()
    assert lag.max() <= 9 * 5.0 / (count - 1) + 1e-12  # nine values at most


def test_a_steep_beginning_is_soon_forgotten():
    values = np.array([5.5, 2.4, 2.6, 2.5, 2.4, 2.4, 2.2])
    assert abs(smooth(values)[-1] - 2.2) < 0.1


def test_raw_smoothed_and_validation_curves_are_drawn(make_run, drawn, tmp_path):
    plot_loss([make_run("run")], tmp_path / "loss.png")
    raw, smoothed, held_out = drawn[0].axes[0].lines
    assert raw.get_xydata().tolist() == [[1, 3.0], [2, 2.0], [3, 1.0]]
    np.testing.assert_allclose(smoothed.get_ydata(), smooth(np.array([3.0, 2.0, 1.0])))
    assert held_out.get_xydata().tolist() == [[0, 4.0], [3, 1.5]]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_several_runs_are_told_apart_by_name_and_colour(make_run, drawn, tmp_path):
    plot_loss([make_run("first"), make_run("second", (2.0,))], tmp_path / "loss.svg")
    axes = drawn[0].axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        *("first training, smoothed", "first validation"),
        *("second training, smoothed", "second validation"),
    ]
    assert len({line.get_color() for line in axes.lines}) == 2
    assert "<svg" in (tmp_path / "loss.svg").read_text()


def test_runs_of_one_name_are_told_apart_by_their_paths(make_run, tmp_path):
    runs = [make_run("a/run"), make_run("b/run")]
    assert distinct_names(runs) == [str(run) for run in runs]
    assert distinct_names(runs[:1]) == ["run"]


def test_a_picture_that_cannot_be_written_is_refused_and_the_old_one_kept(make_run, tmp_path):
    run = make_run("run")
    plot_loss([run], tmp_path / "loss.png")
    before = (tmp_path / "loss.png").read_bytes()
    with pytest.raises(UserError, match=r"nothing here/metrics\.jsonl cannot be read"):
        plot_loss([tmp_path / "nothing here"], tmp_path / "loss.png")
    with pytest.raises(UserError, match=r"loss\.txt has no suffix of a picture"):
        plot_loss([run], tmp_path / "loss.txt")
    with pytest.raises(UserError, match=r"cannot write .*: No such file"):
        plot_loss([run], tmp_path / "nowhere" / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() == before
    assert plt.get_fignums() == []
