# SPDX-License-Identifier: BSD-2-Clause
"""The guest part: what loading the policy takes there, and what the policy costs.

One boot a lane. The guest is emulated, and its clock is made to count instructions: one each
nanosecond, as if on a machine of 10**9 instructions a second that misses no cache (qemu's
-icount). Then its numbers do not depend on how busy the host is, and come out the same again
within some per mille; but they are no times of any real machine. What counts are ratios: loading
against a C program, the policy on against off.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.vm.programs import program as tiny_program
from tests.vm.scenario import Drive
from tools.benchmarks.build import HERE, TOP, program
from tools.benchmarks.errors import BenchError
from tools.benchmarks.objects import Subject
from tools.benchmarks.stats import paired_ratios, summarise
from tools.guest.cache import progress
from tools.guest.drives import build_drive
from tools.guest.lanes import lane_of
from tools.guest.machine import Guest

__all__ = ["CountingGuest", "answer_of", "digest", "measure"]


class CountingGuest(Guest):
    """A guest whose clock counts instructions; while idle it goes with real time."""

    def command(
        self, folder: Path, request: Mapping[str, object], interactive: bool = False
    ) -> list[str]:
        """The qemu command line."""
        return [*super().command(folder, request, interactive), "-icount", "shift=0"]


POLICY = "fsaccess"
_YARDSTICK = "C on libbpf, static"
#: All takes about two minutes; on a busy machine several times that.
_TIMEOUT = 1800.0


def _freeze(code: str, *arguments: str | Path) -> None:
    words = [sys.executable, "-c", f"import sys, pybpf; {code}", *map(str, arguments)]
    done = subprocess.run(words, cwd=TOP, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{arguments[0]} cannot be bundled: {done.stderr.strip()}")


def _objects(subjects: Sequence[Subject]) -> dict[str, bytes]:
    """Each object and its bundle; and the policy as restrict sets it up and freezes it."""
    files = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bundle = Path(folder) / "bundle"
        for subject in subjects:
            files[f"{subject.name}.o"] = subject.path.read_bytes()
            _freeze(
                "open(sys.argv[2], 'wb').write(pybpf.to_bytes(pybpf.compile("
                "pybpf.read(sys.argv[1]))))",
                subject.path, bundle,
            )  # fmt: skip
            files[f"{subject.name}.bundle"] = bundle.read_bytes()
        _freeze(
            "from restrict import bundle; bundle.write(bundle.build(), sys.argv[2])",
            POLICY, bundle,
        )  # fmt: skip
        files["policy.bundle"] = bundle.read_bytes()
    return files


def answer_of(guest: Guest, lane: str, script: str, *arguments: str) -> dict[str, Any]:
    """Run one of the guest's files in it; what it printed as JSON behind "RESULT".

    Raises BenchError, with all that it said, if it or the guest's kernel fails; GuestError.
    """
    lines: list[str] = []

    def show(event: dict[str, object]) -> None:
        if event.get("event") == "output":
            lines.append(str(event.get("text")))

    command = ["/usr/bin/python3", "-B", f"/run/vm/files/{script}", *arguments]
    outcome = guest.run({"mode": "script", "arguments": command}, timeout=_TIMEOUT, on_event=show)
    text = "".join(lines)
    answer = next((line for line in text.splitlines() if line.startswith("RESULT ")), None)
    if outcome.status != 0 or answer is None:
        raise BenchError(
            f"lane {lane}: {outcome.reason}\n{text.strip()}\n--- console\n{outcome.console[-4000:]}"
        )
    if outcome.trouble:
        raise BenchError(f"lane {lane}: the guest's kernel complained: {outcome.trouble[0]}")
    result: dict[str, Any] = json.loads(answer.removeprefix("RESULT "))
    return result


def measure(lane: str, rounds: int, subjects: Sequence[Subject] = ()) -> dict[str, Any]:
    """Boot the lane's guest, run everything in it, and sum it up.

    subjects: objects to load there beside fsaccess. Raises BenchError, GuestError.
    """
    subjects = [
        Subject(POLICY, TOP / "bpf" / "objects" / f"{POLICY}.bpf.o", "own"), *subjects
    ]  # fmt: skip
    wanted = {
        "exec": 50,
        "map": 500,
        "rounds": rounds,
        "load_rounds": 2,  # they are long, and equal within some per mille
        "check": lane != "6.12",  # AT_EXECVE_CHECK came with 6.14
        "objects": [subject.name for subject in subjects],
    }
    files = _objects(subjects)
    files["phases.py"] = (HERE / "phases.py").read_bytes()
    for name in ("guest.py", "load_bundle.py", "load_elf.py", "phase_times.py", "prepared.py"):
        files[name] = (HERE / "child" / name).read_bytes()
    files["wanted.json"] = json.dumps(wanted).encode()
    guest = CountingGuest(lane_of(lane), files=files)
    tools = {
        "launch": program("launch", "-static").read_bytes(),
        "workload": program("workload", "-static").read_bytes(),
        "libbpf_load": program("libbpf_load", "-static", "-lbpf", "-lelf", "-lz").read_bytes(),
        "nop": tiny_program(0),
    }
    guest.add_image("bench", build_drive(guest.tools, Drive(tools)))
    with progress(f"measuring in a guest of lane {lane}"):
        return digest(answer_of(guest, lane, "guest.py", "wanted.json"))


def _values(samples: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [sample[key] for sample in samples]


def digest(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the guest sent, as summaries; ratios are taken within rounds."""
    loading = {name: _loading(contenders) for name, contenders in raw["loading"].items()}
    rates = {}
    for kind, states in raw["rates"].items():
        rates[kind] = {state: summarise(values).json() for state, values in states.items()}
        for state in ("audit", "on"):
            # Time with the policy over time without it: rates the other way round.
            rates[kind][f"{state}_over_off"] = summarise(
                paired_ratios(states["off"], states[state])
            ).json()
    return {
        "kernel": raw["kernel"],
        "loading": loading,
        "phases": raw["phases"],
        "enable_ms": {name: summarise(values).json() for name, values in raw["enable_ms"].items()},
        "operations": _by_kind(raw["operations"]),
        "programs": {name: took for kind, name, took in raw["operations"] if kind == "ProgLoad"},
        "rates": rates,
        "hooks": raw["hooks"],
    }


def _loading(contenders: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    yardstick = contenders[_YARDSTICK]
    for name, samples in contenders.items():
        found[name] = {}
        for key in ("whole_ms", "cpu_ms", "rss_mb", "in_process_ms"):
            if key in samples[0]:
                values = _values(samples, key)
                found[name][key] = summarise(values).json()
                if key in ("whole_ms", "in_process_ms"):
                    ratios = paired_ratios(values, _values(yardstick, key))
                    found[name][f"{key[:-3]}_over_libbpf"] = summarise(ratios).json()
    return found


def _by_kind(operations: Sequence[Sequence[Any]]) -> dict[str, dict[str, float]]:
    """Operations of a plan by their kind: how many, milliseconds together."""
    found: dict[str, dict[str, float]] = {}
    for kind, _name, took in operations:
        entry = found.setdefault(kind, {"count": 0, "ms": 0.0})
        entry["count"] += 1
        entry["ms"] += took
    return found
