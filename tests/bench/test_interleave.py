"""Medians, quartiles and ratios are taken round by round, and disturbed rounds are tried again."""

import io
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from bench import step
from bench.growth import axis_rows, log_slope
from bench.interleave import interleave, per_step, quartiles, ratios
from bench.options import Bench, BenchOptions, OutOfTimeError
from bench.process import NoMemoryError, Sample, Worker, workers
from bench.rows import rows_of
from twinstep.errors import UserError


def sample(seconds: float, others: float | None = 0.0) -> Sample:
    return Sample(seconds, seconds, others, None)


class Scripted(Worker):
    """A worker without a process, whose samples are given."""

    def __init__(self, samples: list[Sample], log: list[str], name: str):
        self.samples, self.log, self.name = iter(samples), log, name

    def work(self) -> Sample:
        self.log.append(self.name)
        return next(self.samples)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("bench.interleave.PAUSE_SECONDS", 0)


def test_spread_is_the_median_between_the_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_a_ratio_compares_samples_of_one_round():
    """A machine that slows down for both sides changes no ratio; a ratio of medians would hide a side that varies."""
    ours, theirs = [sample(s) for s in (1, 10, 100)], [sample(s) for s in (2, 20, 300)]
    assert ratios(theirs, ours).median == 2
    assert ratios(theirs, ours).high == 2.5


def test_sides_work_in_turn_after_their_warmups():
    log: list[str] = []
    sides: dict[str, Worker] = {name: Scripted([sample(1)] * 9, log, name) for name in ("a", "b")}
    found = interleave(sides, pairs=2, warmups=1)
    assert log == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(samples) for name, samples in found.items()} == {"a": 2, "b": 2}


def test_a_disturbed_round_is_tried_again_and_both_its_sides_left_out():
    ours = Scripted([sample(1), sample(2, others=0.9), sample(3)], [], "a")
    theirs = Scripted([sample(4), sample(5), sample(6)], [], "b")
    found = interleave({"a": ours, "b": theirs}, pairs=2, warmups=0)
    assert [s.seconds for s in found["a"]] == [1, 3]
    assert [s.seconds for s in found["b"]] == [4, 6]


def test_where_every_round_is_disturbed_the_least_disturbed_count():
    others = [0.5, 0.2, 0.9]
    side = Scripted([sample(n, other) for n, other in enumerate(others)], [], "a")
    assert [s.seconds for s in interleave({"a": side}, pairs=1, warmups=0)["a"]] == [1]


def test_rows_compare_every_side_with_the_first():
    samples = {"jax": [sample(2.0, 0.01)] * 3, "torch": [sample(3.0, None)] * 3}
    jax, torch = rows_of("work", samples, "ms", lambda s: 1e3 * s.seconds, seconds_at_peak=1.0)
    assert (jax.value, jax.ratio, jax.peak_share, jax.others) == (2000, None, 0.5, 0.01)
    assert (torch.value, torch.ratio, torch.peak_share, torch.others) == (3000, 1.5, 1 / 3, 0.0)
    assert torch.extra["seconds"] == [3.0, 3.0, 3.0]


def test_a_slope_is_the_exponent_over_the_upper_half_of_the_sizes():
    assert log_slope((1, 2, 4, 8), [5.0, 5.0, 16.0, 64.0]) == pytest.approx(2)
    assert log_slope((1, 2), [3.0, 6.0]) == pytest.approx(1)


def test_growth_ends_in_the_measured_slope_beside_that_of_the_operations():
    by_size = [[sample(1.0)._replace(result=10.0)], [sample(4.0)._replace(result=20.0)]]
    rows = axis_rows("depth", (2, 4), "jax", by_size, flops=[1e9, 2e9], peak=2e9)
    assert [row.value for row in rows] == pytest.approx([1000, 4000, 2, 1])
    assert [row.peak_share for row in rows[:2]] == [0.5, 0.25]
    assert rows[2].extra["flops_slope"] == pytest.approx(1)
    assert rows[3].work == "growth, slope of compiling in depth"


def test_a_worker_that_dies_ends_in_one_line_with_its_own_words():
    with pytest.raises(UserError, match=r"step of jax ended: .*no_such_field"):
        start("step", {"jax": {"no_such_field": 1, "sequence_len": 8, "batch_size": 1}})


def start(module: str, specs: dict[str, dict[str, int]]) -> None:
    with workers(module, specs):
        raise AssertionError("the worker got ready")


def test_a_worker_is_gone_after_its_block():
    with Worker("peak", "jax", {"size": 8, "dtype": "float32", "repeats": 1}) as worker:
        worker.wait()
        assert worker.work().seconds > 0
    assert worker.process.returncode == 0


def test_a_sample_of_several_pieces_is_divided_by_each_sides_own_number():
    samples = {"jax": [Sample(6.0, 12.0, 0.1, "text")], "torch": [Sample(6.0, 6.0, None, None)]}
    assert per_step(samples, {"jax": 3, "torch": 2}) == {
        "jax": [Sample(2.0, 4.0, 0.1, "text")],
        "torch": [Sample(3.0, 3.0, None, None)],
    }


def test_after_the_deadline_no_round_begins_but_the_first():
    found = interleave({"a": Scripted([sample(1.0)] * 9, [], "a")}, pairs=3, warmups=1, deadline=0)
    assert len(found["a"]) == 1


def test_a_size_that_does_not_fit_beside_the_others_is_halved(monkeypatch):
    tried = []

    @contextmanager
    def too_small(module, specs, platform):
        tried.append(specs["jax"]["batch_size"])
        if tried[-1] > 8:
            raise NoMemoryError("step of torch ran out")
        result = {"seconds": 3.0, "peak_bytes": 10}
        yield {side: Scripted([sample(9.0)._replace(result=result)] * 9, [], side) for side in specs}

    monkeypatch.setattr(step, "workers", too_small)
    spec, samples = step.samples_that_fit(Bench(BenchOptions(pairs=1), 1e12), {"batch_size": 32}, ["jax", "torch"])
    assert tried == [32, 16, 8]
    assert spec == {"batch_size": 8}
    assert samples["torch"][0].seconds == 1.0  # of one of the three steps, as the side itself took their time
    ratios_of_memory = [row.ratio for row in step.memory_rows("peak memory", samples)]
    assert ratios_of_memory == [None, 1.0]


def test_a_size_of_one_sequence_that_does_not_fit_is_an_error(monkeypatch):
    def too_small(module, specs, platform):
        raise NoMemoryError("step of jax ran out")

    monkeypatch.setattr(step, "workers", too_small)
    with pytest.raises(NoMemoryError):
        step.samples_that_fit(Bench(BenchOptions(pairs=1), 1e12), {"batch_size": 1}, ["jax"])


@pytest.mark.parametrize("said", ["torch.OutOfMemoryError: CUDA out of memory.", "RESOURCE_EXHAUSTED: Out of memory"])
def test_a_worker_without_memory_says_so_in_one_line(said):
    worker = Worker.__new__(Worker)
    worker.name, worker.errors = "step of torch", io.StringIO(f"Traceback\n{said}\nfooter")
    worker.process = SimpleNamespace(stdout=io.StringIO(""), wait=lambda: 1)
    with pytest.raises(NoMemoryError, match="step of torch ran out of the device's memory: footer"):
        worker.wait()


def test_a_measurement_without_time_is_left_out():
    bench = Bench(BenchOptions(platform="cuda"), 1e12, deadline=time.monotonic() + 10)
    bench.check_time(5)
    with pytest.raises(OutOfTimeError):
        bench.check_time(20)
    on_cpu = Bench(BenchOptions(), 1e12, deadline=time.monotonic() + 10)
    on_cpu.check_time(20)  # what a GPU's sizes need
    with pytest.raises(OutOfTimeError):
        Bench(BenchOptions(), 1e12, deadline=time.monotonic() - 1).check_time()
