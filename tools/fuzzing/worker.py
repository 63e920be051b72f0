# SPDX-License-Identifier: BSD-2-Clause
"""One fuzzing process: runs a target on inputs and keeps those that break the rules.

An input may take 2 s of processor time and 256 MB of memory. A finding does not end the process:
it is written to a file named after where it happened, once a place.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import struct
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

SECONDS = 2.0
MEMORY = 256 << 20
# Counting branches makes Python several times slower; what is suspicious is run again without.
INSTRUMENTED = 4.0
PROGRESS = 10.0  # seconds between two lines that say how far it is


class TooSlow(BaseException):
    """Not an Exception: nothing under test may catch it."""


class TooBig(BaseException):
    """The peak of resident memory rose by more than MEMORY."""


def _status(field: bytes) -> int:
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) << 10
    return 0


def _expired(_signal: int, frame: FrameType | None) -> None:
    raise TooSlow


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Time and memory for one input; raises TooSlow, TooBig, MemoryError."""
    with open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")  # forget the peak (mm_struct.hiwater_rss)
    before = _status(b"VmRSS:")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status(b"VmSize:") + MEMORY, hard))
    signal.signal(signal.SIGPROF, _expired)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    peak = _status(b"VmHWM:") - before
    if peak > MEMORY:
        raise TooBig(f"{peak >> 20} MB")


def _place(error: BaseException) -> str:
    """Exception and the innermost place in pybpf: findings of one place are one finding."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/pybpf/" in f.filename or "/fuzzing/targets" in f.filename]
    if not own:
        return type(error).__name__
    last = own[-1]
    return f"{type(error).__name__}-{Path(last.filename).stem}-{last.name.strip('<>')}"


class Keeper:
    """Runs inputs and keeps findings in ``folder``."""

    def __init__(self, folder: Path, run: Any, seconds: float) -> None:
        self.folder, self.run, self.seconds = folder, run, seconds
        self.seen: dict[str, int] = {}
        self.runs = 0
        self.slowest = 0.0
        self.since = time.process_time()

    def one(self, data: bytes) -> None:
        """Run one input."""
        self.runs += 1
        started = time.process_time()
        try:
            with limits(self.seconds):
                self.run(data)
        except (Exception, TooSlow, TooBig) as error:
            place = _place(error)
            count = self.seen[place] = self.seen.get(place, 0) + 1
            if count == 1:
                digest = hashlib.sha256(data).hexdigest()[:12]
                path = self.folder / f"{place}-{digest}"
                path.write_bytes(data)
                text = "".join(traceback.format_exception(error)[-4:])
                print(f"\nfinding {path.name} ({len(data)} bytes)\n{text[-1500:]}", flush=True)
        self.slowest = max(self.slowest, time.process_time() - started)

    def tell(self, name: str, seconds: float) -> None:
        """One line: how much was run, and what came of it."""
        found = ", ".join(f"{k}: {v}" for k, v in self.seen.items()) or "none"
        print(
            f"{name}: {self.runs} inputs in {seconds:.0f} s "
            f"({self.runs / (time.process_time() - self.since):.0f} a second of processor time), "
            f"slowest {self.slowest:.2f} s, findings: {found}",
            flush=True,
        )


def fuzz(name: str, *, seconds: float, seed: int, out: Path) -> None:
    """Fuzz a target; does not return (libFuzzer ends the process)."""
    print(f"{name}: importing pybpf with its branches counted", flush=True)
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with (
        open(os.devnull, "w") as quiet,
        redirect_stderr(quiet),  # a line a module
        atheris.instrument_imports(include=["pybpf"], enable_loader_override=False),
    ):
        from tools.fuzzing.targets import TARGETS, prepare
    target = TARGETS[name]
    prepare()
    corpus, findings = out / "corpus" / name, out / "findings" / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds():
        (corpus / f"seed-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
    print(f"{name}: {len(os.listdir(corpus))} inputs to start from, in {corpus}", flush=True)
    keeper = Keeper(findings, target.run, INSTRUMENTED)
    started = told = time.monotonic()

    def mutator(data: bytes, limit: int, number: int) -> bytes:
        rng = Random(number)
        made = b""
        if rng.randrange(16):
            try:
                made = target.mutate(data, rng)
            except (IndexError, ValueError, struct.error):
                pass  # mutated before into something that cannot be taken apart
        if not made:
            made = atheris.Mutate(data, limit)
        return bytes(made[:limit])

    def one(data: bytes) -> None:
        nonlocal told
        keeper.one(data)
        now = time.monotonic()
        if now - told > PROGRESS or now - started > seconds:
            keeper.tell(name, now - started)
            told = now
        if now - started > seconds:
            os._exit(0)

    atheris.Setup(
        [
            "fuzz", str(corpus), f"-seed={seed or 1}", f"-max_len={target.largest}",
            "-len_control=0", "-rss_limit_mb=3000", "-timeout=60", "-verbosity=0", "-reload=0",
            f"-artifact_prefix={findings}/fuzzer-",
        ],
        one,
        custom_mutator=mutator,
    )  # fmt: skip
    atheris.Fuzz()


def reproduce(name: str, path: Path) -> int:
    """Run one kept input without instrumentation; 1 if it still breaks a rule."""
    from tools.fuzzing.targets import TARGETS, prepare

    prepare()
    data = path.read_bytes()
    started = time.process_time()
    try:
        with limits(SECONDS):
            TARGETS[name].run(data)
    except (Exception, TooSlow, TooBig) as error:
        traceback.print_exception(error)
        print(f"{path}: still: {_place(error)}")
        return 1
    print(f"{path}: fine ({time.process_time() - started:.2f} s)")
    return 0
