# SPDX-License-Identifier: BSD-2-Clause
"""The cache folder: locks, publishing by rename, content hashes, progress lines.

Every artefact is built in a scratch directory and renamed into its final place, so an
interrupted run leaves nothing that looks finished; a lock per artefact keeps concurrent runs
from building the same thing twice.  An artefact's time of change is when it was last used: what
a new one supersedes is removed by that.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import GuestError

__all__ = [
    "cache_root",
    "content_hash",
    "guests_at_once",
    "lock",
    "processor_slot",
    "progress",
    "prune",
    "publish",
    "remove_unused",
    "scratch",
    "there",
    "tree_hash",
]

_SLOW_SECONDS = 2.0
_IN_USE_SECONDS = 7200.0  # nothing that was used since is removed
_ABANDONED_SECONDS = 86400.0


def cache_root() -> Path:
    """The cache folder: RESTRICT_CACHE, else pybpf-restrict in the user's cache directory."""
    named = os.environ.get("RESTRICT_CACHE")
    if named:
        root = Path(named).absolute()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        root = Path(base) / "pybpf-restrict"
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Print *what* to stderr once it takes longer than two seconds, and then how long it took."""
    start = time.monotonic()
    told = threading.Event()

    def tell() -> None:
        told.set()
        print(f"… {what}", file=sys.stderr, flush=True)

    timer = threading.Timer(_SLOW_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if told.is_set():
            print(f"… {what}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(path: Path, *, tell: bool = True) -> Iterator[None]:
    """Hold an exclusive flock(2) on the file *path* (made if need be) while the body runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        what = f"waiting for another run that holds {path.name}"
        with progress(what) if tell else contextlib.nullcontext():
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A directory of the cache that is gone afterwards, what killed runs have left included."""
    folder = cache_root() / "scratch"
    folder.mkdir(exist_ok=True)
    prune(folder, "*", 0, _ABANDONED_SECONDS)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}-", dir=folder) as name:
        yield Path(name)


def there(target: Path) -> bool:
    """Whether the artefact *target* has been made; then it counts as used now."""
    with contextlib.suppress(PermissionError):  # made by another user
        try:
            os.utime(target)
        except FileNotFoundError:
            return False
    return True


def publish(
    target: Path, build: Callable[[Path], None], what: str, *, keep: int | None = None
) -> Path:
    """Return *target*; if it does not exist, ``build(folder)`` fills a directory first.

    The directory is renamed to *target* only after *build* has returned.  *keep* is how many of
    its kind stay then, the last used ones: those of the same name up to the last ``-``.
    """
    if there(target):
        return target
    locks = cache_root() / "locks"
    with lock(locks / target.name):
        if there(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch("build") as folder, progress(what):
            content = folder / "content"
            content.mkdir()
            build(content)
            content.rename(target)
    if keep is not None:
        kind, dash, _ = target.name.rpartition("-")
        prune(target.parent, f"{kind}{dash}*", keep)
    return target


def guests_at_once() -> int:
    """How many guests one run may have at a time: RESTRICT_VM_JOBS, else up to two.

    qemu emulates with one thread, so two guests are a machine of two processors.

    Raises:
        GuestError: RESTRICT_VM_JOBS is not a number above zero.
    """
    text = os.environ.get("RESTRICT_VM_JOBS", "") or str(min(2, os.cpu_count() or 1))
    if not text.isdecimal() or int(text) < 1:
        raise GuestError(f"RESTRICT_VM_JOBS is {text!r}: give the number of guests at a time")
    return int(text)


@functools.cache
def _permits() -> threading.Semaphore:
    return threading.Semaphore(guests_at_once())


@contextlib.contextmanager
def processor_slot() -> Iterator[None]:
    """Hold one of as many slots as the machine has processors, across all its processes; of
    them, this process has no more than :func:`guests_at_once`.

    qemu emulates a guest with one busy thread: more guests at a time than processors would
    only make each of them so slow that it looks as if it hung.
    """
    with _permits(), _machine_slot():
        yield


@contextlib.contextmanager
def _machine_slot() -> Iterator[None]:
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    names = [folder / f"guest-{number}" for number in range(os.cpu_count() or 1)]
    fds = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) for name in names]
    try:
        # Who waits queues for one lock, which the kernel gives in the order of asking; only the
        # first in the queue looks for a slot, so nobody is overtaken for ever.
        queue = lock(folder / "guest-queue", tell=False)
        with progress("waiting until fewer guests run"), queue:
            while not any(_try_lock(fd) for fd in fds):
                time.sleep(0.1)
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _age_order(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except FileNotFoundError:  # another run was faster
        return 0.0


def prune(folder: Path, pattern: str, keep: int, min_age: float = _IN_USE_SECONDS) -> None:
    """Remove all but the *keep* last used entries that match, if not used for *min_age* seconds."""

    for path in sorted(folder.glob(pattern), key=_age_order)[keep:]:
        remove_unused(path, min_age)


def remove_unused(path: Path, min_age: float = _IN_USE_SECONDS) -> None:
    """Remove the file or folder, if not used for *min_age* seconds."""
    if -_age_order(path) < time.time() - min_age:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def content_hash(parts: Iterable[bytes | str]) -> str:
    """A short hash over *parts*; each part's length goes in, so that borders count."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()[:20]


def tree_hash(files: Iterable[tuple[str, Path]]) -> str:
    """A hash over (name in the tree, file on the host): names, contents and executable bits."""

    def parts() -> Iterator[bytes]:
        for name, path in sorted(files):
            yield name.encode()
            yield b"x" if os.access(path, os.X_OK) else b"-"
            yield path.read_bytes()

    return content_hash(parts())
