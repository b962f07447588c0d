"""Compiled programs kept from one start to the next, so that the second start of a run need not compile.

JAX has such a cache. It writes an entry in place and reads it without a lock, so a process that is killed leaves half
of one behind, which costs every later start a warning and a compilation. Here each process gives JAX a folder of its
own, filled with hard links to the shared entries, and links what it compiled back once that is whole.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from twinstep.config import Config
from twinstep.data.cache import cache_folder

LARGEST = 2**31  # bytes; beyond it the oldest entries go
OWN = "in-use-"  # a process's own folder begins with this

# JAX's events before a compilation that asks the cache, and after every compilation, when its entry has been written.
ASKED = "/jax/compilation_cache/compile_requests_use_cache"
COMPILED = "/jax/core/compile/backend_compile_duration"


def keep_compiled_programs(config: Config) -> None:
    """Set JAX's persistent compilation cache for this process; call before the first computation.

    Entries lie in the user's cache folder, never in --cache-dir: a compiled program is code, and is taken only from a
    folder into which nobody else may write. Nothing is done under --no-compilation-cache, where JAX has been given a
    folder already (JAX_COMPILATION_CACHE_DIR), or where the folder cannot be made or linked into.
    """
    settings: Any = jax.config
    if not config.devices.compilation_cache or settings.jax_compilation_cache_dir:
        return
    shared = cache_folder(None) / "compiled" / machine_key()
    try:
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(shared):
            return
        remove_unused(shared)
        own = own_folder(shared)
        for entry in entries(shared):
            link(entry, own)
    except OSError:
        return
    settings.update("jax_persistent_cache_min_compile_time_secs", 0)
    settings.update("jax_persistent_cache_enable_xla_caches", "none")  # their folder's name would be part of each key
    compilation_cache.set_cache_dir(str(own))
    compilation_cache.reset_cache()  # JAX reads the setting once, and may have done so
    publish_when_compiled(own, shared)


def publish_when_compiled(own: Path, shared: Path) -> None:
    """Link new entries into the shared folder whenever a compilation ends and no other thread is at one."""
    under_way = 0

    def asked(event: str, **_: object) -> None:
        nonlocal under_way
        under_way += event == ASKED

    def compiled(event: str, duration_secs: float, **_: object) -> None:
        nonlocal under_way
        if event != COMPILED:
            return
        under_way = max(0, under_way - 1)
        if under_way == 0:
            with contextlib.suppress(OSError):
                publish(own, shared)

    jax.monitoring.register_event_listener(asked)
    jax.monitoring.register_event_duration_secs_listener(compiled)


def publish(own: Path, shared: Path) -> None:
    """Link what `own` has and `shared` has not. Its bytes are on the disk before its name is."""
    for entry in entries(own):
        if not (shared / entry.name).exists():
            with entry.open("rb") as file:
                os.fsync(file.fileno())
            link(entry, shared)


def link(entry: Path, folder: Path) -> None:
    """A hard link of the same name, unless another process was first."""
    with contextlib.suppress(FileExistsError):
        os.link(entry, folder / entry.name)


def entries(folder: Path) -> list[Path]:
    """The files of a folder, not those in the folders of processes in it."""
    return [path for path in folder.iterdir() if path.is_file()]


def own_folder(shared: Path) -> Path:
    """A new folder of this process, locked until it ends, when it is removed."""
    folder = tempfile.mkdtemp(prefix=OWN, dir=shared)
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # the system closes it with the process
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def remove_unused(shared: Path) -> None:
    """Folders of processes that were killed, and the oldest entries of all machines and versions beyond LARGEST."""
    for folder in shared.glob(f"{OWN}*"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # its process lives
            pass
        finally:
            os.close(descriptor)
    facts = [(path, path.stat()) for key in shared.parent.iterdir() if key.is_dir() for path in entries(key)]
    size = sum(fact.st_size for _, fact in facts)
    for path, fact in sorted(facts, key=lambda pair: pair[1].st_mtime):
        if size <= LARGEST:
            break
        path.unlink(missing_ok=True)
        size -= fact.st_size


def is_private(folder: Path) -> bool:
    """Whether the folder is this user's, and nobody else may write into it."""
    facts = folder.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def machine_key() -> str:
    """What a compiled program depends on beside what JAX's own key holds: the processor, and the versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    parts = (platform.machine(), platform.system(), *processor, jax.__version__, version("jaxlib"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
