"""Compiled programs from one start to the next: taken whole, by nobody else's hand, and cleaned up."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jax_impl import compilation_cache
from jax_impl.compilation_cache import entries, link, machine_key, publish, remove_unused
from twinstep.config import Config, DeviceConfig

COMPILE = """
import sys
import jax
from jax_impl.compilation_cache import keep_compiled_programs
from twinstep.config import Config
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.rpartition("/")[2]))
keep_compiled_programs(Config())
print(jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3))).sum())
print(seen.count("cache_hits"), seen.count("cache_misses"), flush=True)
if sys.argv[1:]:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The folder of entries in a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "twinstep" / "compiled" / machine_key()


def start(*words: str) -> list[str]:
    """The lines that a new process prints, which compiles a few programs or finds them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_") or name == "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE, *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == (-9 if words else 0), done.stderr
    assert not done.stderr
    return done.stdout.split("\n")[:2]


def test_the_second_start_compiles_nothing(shared):
    (sum1, first), (sum2, second) = start(), start()
    count = int(first.split()[1])
    assert count > 0
    assert (sum1, first) == ("36.0", f"0 {count}")
    assert (sum2, second) == ("36.0", f"{count} 0")
    assert len(list(shared.iterdir())) == count  # and no folder of a process is left


def test_what_a_killed_process_had_compiled_stays_and_its_folder_goes(shared):
    count = int(start("killed")[1].split()[1])
    assert len([path for path in shared.iterdir() if path.is_dir()]) == 1
    assert start()[1] == f"{count} 0"
    assert len(list(shared.iterdir())) == count


def test_a_folder_into_which_others_may_write_is_not_used(shared):
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert start()[1] == "0 0"
    assert not list(shared.iterdir())


def test_the_flag_and_a_folder_of_the_users_own_leave_jax_as_it_is(monkeypatch):
    monkeypatch.setattr(compilation_cache, "cache_folder", lambda _: pytest.fail("looked for the folder"))
    assert jax.config.jax_compilation_cache_dir  # that of the tests
    compilation_cache.keep_compiled_programs(Config())
    monkeypatch.setattr(compilation_cache.jax.config, "update", lambda *_: pytest.fail("set"))
    compilation_cache.keep_compiled_programs(Config(devices=DeviceConfig(compilation_cache=False)))


def test_an_entry_that_is_there_is_not_replaced(tmp_path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    for folder, text in ((own, "new"), (shared, "old")):
        folder.mkdir()
        (folder / "both").write_text(text)
    (own / "one").write_text("new")
    publish(own, shared)
    link(own / "both", shared)  # another process was first
    assert {path.name: path.read_text() for path in entries(shared)} == {"both": "old", "one": "new"}


def test_the_oldest_entries_go_whatever_machine_they_were_for(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "LARGEST", 250)
    for age, path in enumerate(("a/new", "b/old", "a/older", "b/oldest")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(bytes(100))
        os.utime(tmp_path / path, (10**9 - age, 10**9 - age))
    remove_unused(tmp_path / "a")
    assert sorted(str(Path(path).relative_to(tmp_path)) for path in tmp_path.rglob("*/*")) == ["a/new", "b/old"]
