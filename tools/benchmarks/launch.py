# SPDX-License-Identifier: BSD-2-Clause
"""Whole processes, timed by a small C launcher, and rounds of them in pairs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.benchmarks.build import program
from tools.benchmarks.errors import BenchError

__all__ = ["Contender", "Sample", "launch", "paired"]

_TIMEOUT = 60


@dataclass(frozen=True)
class Sample:
    """One run of one process. Times in ms, from just before the spawn; rss: peak, in MB.

    cpu: processor time, in user space and in the kernel, which a busy machine disturbs less.
    marks: what the process printed as "mark NAME NANOSECONDS", in ms since the spawn;
    facts: what else it printed as "NAME NUMBER".
    """

    whole: float
    cpu: float
    rss: float
    marks: Mapping[str, float]
    facts: Mapping[str, float]

    def between(self, start: str, end: str) -> float:
        """Milliseconds from one mark to another."""
        return self.marks[end] - self.marks[start]


@dataclass
class Contender:
    """A process that is measured: its name, its command, and what cleans up behind it."""

    name: str
    command: Sequence[str | Path]
    clean: Callable[[], None] = lambda: None
    samples: list[Sample] = field(default_factory=list)

    def values(self, what: Callable[[Sample], float]) -> list[float]:
        """One value of each sample."""
        return [what(sample) for sample in self.samples]


def launch(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Sample:
    """Run a command once, with nothing in its environment but PATH and what is given.

    Raises BenchError if it fails; the message has its output.
    """
    reader, writer = os.pipe()
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            [str(program("launch", "-static")), str(writer), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[writer],
            env={"PATH": os.defpath, **(environment or {})},
            timeout=_TIMEOUT,
            text=True,
        )
        os.close(writer)
        writer = -1
        with open(reader, closefd=False) as file:
            answer = file.read().split()
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(words)} did not end within {_TIMEOUT} s") from None
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    said = (done.stderr + done.stdout).strip()
    shown = " ".join(words[:8] + ["…"] * (len(words) > 8))
    if done.returncode or len(answer) != 5:
        raise BenchError(f"{shown} could not be started: {said}")
    start, took, cpu, rss, status = map(int, answer)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise BenchError(f"{shown} ended with status {code}: {said}")
    marks, facts = _printed(done.stdout, start)
    return Sample(took / 1e6, cpu / 1e3, rss / 1024, marks, facts)


def _printed(text: str, start: int) -> tuple[dict[str, float], dict[str, float]]:
    marks = {}
    facts = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "mark":
            marks[words[1]] = (int(words[2]) - start) / 1e6
        elif len(words) == 2:
            try:
                facts[words[0]] = float(words[1])
            except ValueError:  # other programs may print what they like
                continue
    return marks, facts


def paired(contenders: Sequence[Contender], rounds: int, warm_up: int = 2) -> None:
    """Run all contenders one after another, ``rounds`` times, and keep their samples.

    The order is turned round every second time, so that none always follows the same one. The
    first ``warm_up`` rounds fill caches and are not kept.
    """
    for number in range(warm_up + rounds):
        for contender in contenders if number % 2 else reversed(contenders):
            sample = launch(contender.command)
            contender.clean()
            if number >= warm_up:
                contender.samples.append(sample)
