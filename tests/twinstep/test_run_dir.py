import errno
import json
import multiprocessing
from dataclasses import replace

import pytest

from twinstep.config import from_dict
from twinstep.errors import RunError, UserError
from twinstep.presets import DEFAULTS
from twinstep.run_dir import (
    CHECKPOINTS,
    METRICS,
    append_metrics,
    check_data,
    checkpoint_steps,
    create_run,
    has_no_data,
    lock_run,
    read_metrics,
    remove_old,
    remove_unfinished,
    trim_metrics,
    update_config,
    write_atomically,
    write_run,
)

CONFIG = DEFAULTS["linear"]


def make_checkpoints(run, *names):
    for name in names:
        (run / CHECKPOINTS / str(name) / "item").mkdir(parents=True)


def names(run):
    return sorted(entry.name for entry in (run / CHECKPOINTS).iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.endswith(".tmp")] == ["file"]


def test_a_run_is_made_once_and_not_over_anything(tmp_path):
    run = tmp_path / "a" / "run"
    create_run(run)
    write_run(run, CONFIG, {"sha256": "1"})
    assert sorted(entry.name for entry in run.iterdir()) == ["checkpoints", "config.json", "data.json"]
    with pytest.raises(UserError, match="already holds a run; pass --resume"):
        create_run(run)
    (tmp_path / "notes").write_text("")
    with pytest.raises(UserError, match=r"is not empty .it holds a.; pass another --out-dir"):
        create_run(tmp_path)


def test_a_start_that_was_killed_while_it_wrote_its_config_is_not_in_the_way(tmp_path):
    (tmp_path / ".config.json.123.tmp").write_text('{"model_na')
    create_run(tmp_path)


def test_writing_a_run_again_adds_only_what_is_missing(tmp_path):
    create_run(tmp_path)
    write_run(tmp_path, CONFIG, {"sha256": "1"})
    (tmp_path / "data.json").unlink()
    before = (tmp_path / "config.json").read_bytes()
    write_run(tmp_path, DEFAULTS["mlp"], {"sha256": "2"})
    assert (tmp_path / "config.json").read_bytes() == before
    assert json.loads((tmp_path / "data.json").read_text()) == {"sha256": "2"}


def test_data_that_changed_is_named_with_both_values(tmp_path):
    write_run(tmp_path, CONFIG, {"sha256": "1", "source": "here"})
    check_data(tmp_path, {"sha256": "1", "source": "there"})
    with pytest.raises(UserError, match="sha256 was 1, is 2"):
        check_data(tmp_path, {"sha256": "2", "source": "here"})


def hold(run, held, done):
    with lock_run(run):
        held.set()
        done.wait()


def test_a_run_is_locked_until_its_process_ends_however_it_ends(tmp_path):
    write_run(tmp_path, CONFIG, {})
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, held, done), daemon=True)
    process.start()
    held.wait()
    try:
        with pytest.raises(UserError, match="another process is writing to"):
            lock_run(tmp_path).close()
    finally:
        process.kill()
        process.join()
    with lock_run(tmp_path):
        pass


def test_a_config_that_is_replaced_leaves_the_run_locked(tmp_path):
    write_run(tmp_path, CONFIG, {})
    with lock_run(tmp_path):
        update_config(tmp_path, replace(CONFIG, train=replace(CONFIG.train, steps=9)))
        with pytest.raises(UserError, match="another process is writing to"):
            lock_run(tmp_path)


def test_a_config_follows_the_horizon_and_the_places_and_nothing_else(tmp_path, monkeypatch):
    write_run(tmp_path, CONFIG, {})
    extended = replace(
        CONFIG,
        train=replace(CONFIG.train, steps=9),
        output=replace(CONFIG.output, extend_to=9, log_every=77, resume=True),
        devices=replace(CONFIG.devices, parallel="jit"),
    )
    update_config(tmp_path, extended)
    expected = replace(extended, output=replace(CONFIG.output, extend_to=9), devices=CONFIG.devices)
    assert from_dict(json.loads((tmp_path / "config.json").read_text())) == expected

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (tmp_path / "config.json").read_bytes()
    update_config(tmp_path, extended)  # nothing to write
    monkeypatch.setattr("os.replace", full)
    update_config(tmp_path, extended)
    with pytest.raises(UserError, match="No space left"):
        update_config(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_bytes() == before
    assert len([*tmp_path.iterdir()]) == 3


def test_only_an_empty_record_says_that_there_is_no_data(tmp_path):
    assert not has_no_data(tmp_path)
    for text, expected in (("{}\n", True), ('{"sha256": "1"}', False), ("{", False), ("[]", False)):
        (tmp_path / "data.json").write_text(text)
        assert has_no_data(tmp_path) == expected


def test_torn_lines_and_those_past_the_checkpoint_are_dropped(tmp_path):
    for step in (0, 1, 1, 2, 3):
        append_metrics(tmp_path, {"step": step, "loss": step / 3})
    with (tmp_path / METRICS).open("a") as log:
        log.write('not json\n[1]\n{"step": "3"}\n{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 1, 2, 3]
    trim_metrics(tmp_path, 2)
    assert (tmp_path / METRICS).read_text().splitlines() == [
        json.dumps({"step": step, "loss": step / 3}) for step in (0, 1, 1, 2)
    ]
    trim_metrics(tmp_path, None)
    assert (tmp_path / METRICS).read_text() == ""


def test_a_log_that_is_not_there_is_no_run(tmp_path):
    trim_metrics(tmp_path, 3)
    with pytest.raises(UserError, match=r"is .* a run"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match="the checkpoints are intact"):
        append_metrics(tmp_path / "nowhere", {"step": 1})


def test_only_finished_checkpoints_are_listed_in_order(tmp_path):
    assert checkpoint_steps(tmp_path) == []
    make_checkpoints(tmp_path, 10, 9, 100, "20.tmp", "30.removed", "40.orbax-checkpoint-tmp", "notes")
    assert checkpoint_steps(tmp_path) == [9, 10, 100]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["10", "100", "9", "notes"]


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    make_checkpoints(tmp_path, *range(1, 8))
    remove_old(tmp_path, 2, lambda run, step: {"best_step": 3})
    assert checkpoint_steps(tmp_path) == [3, 6, 7]
    remove_old(tmp_path, 1, lambda run, step: {"best_step": None})
    assert names(tmp_path) == ["7"]


def test_a_removal_that_is_cut_short_leaves_no_half_checkpoint_under_its_name(tmp_path, monkeypatch):
    make_checkpoints(tmp_path, 1, 2)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # killed at once
    remove_old(tmp_path, 1, lambda run, step: {"best_step": None})
    assert checkpoint_steps(tmp_path) == [2]
    assert names(tmp_path) == ["1.removed", "2"]
