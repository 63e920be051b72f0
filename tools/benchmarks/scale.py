# SPDX-License-Identifier: BSD-2-Clause
"""The scale part: many programs, many updates, many events; against libbpf where it has such.

The ring buffer is filled by one producer in C, the same for every consumer, that never waits: what
a consumer does not take in time is dropped in the kernel and counted there. So the events that it
has seen in a second are the most it can take.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.build import HERE, TOP, program, stage
from tools.benchmarks.errors import BenchError
from tools.benchmarks.host import HostBench
from tools.benchmarks.objects import Subject
from tools.benchmarks.stats import Summary
from tools.benchmarks.table import number, render, spread
from tools.guest.cache import progress

__all__ = ["measure", "scale_text"]

OBJECTS = TOP / "tests" / "objects"
_SIZES = (16, 64, 256)
_EVENTS = 1_000_000
_FLAT = 10_000_000
_TIMEOUT = 600


def _facts(command: Sequence[str | Path], environment: Mapping[str, str]) -> dict[str, float]:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=_TIMEOUT,
        env={"PATH": os.defpath, **environment},
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{' '.join(words[:3])} … failed: {(done.stderr or done.stdout).strip()}")
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


def _offsets() -> dict[str, str]:
    """Where the counters are in .bss: the yardstick in C reads no BTF."""
    import pybpf

    variables = pybpf.read(OBJECTS / "flood.bpf.o").variables
    return {f"BSS_{name.upper()}": str(variables[name].offset) for name in ("sent", "dropped")}


def _ring(bench: HostBench, way: str, size: int, events: int) -> dict[str, float]:
    """One consumer of the flood: "libbpf", or one of ours ("read", "consume")."""
    producer = program("flood", "-lbpf")
    pin = bench.bpffs / "flood"
    common: list[str | Path] = [OBJECTS / "flood.bpf.o", pin, producer, str(size), str(events)]
    command: list[str | Path]
    if way == "libbpf":
        command = [program("libbpf_ring", "-lbpf"), *common]
    else:
        product, dependencies = stage()
        script = HERE / "child" / "ring.py"
        command = [bench.python, "-I", "-S", script, product, dependencies, *common, way]
    try:
        found = _facts(command, _offsets())
    finally:
        pin.unlink(missing_ok=True)
    found["events_per_s"] = found["events"] / found["seconds"]
    found["bytes_per_s"] = found["bytes"] / found["seconds"]
    found["events_per_cpu_s"] = found["events"] / found["cpu"]
    return found


def measure(bench: HostBench) -> dict[str, Any]:
    """Everything of the scale part."""
    many = Subject("many", OBJECTS / "many.bpf.o", "200 programs, of the tests")
    result: dict[str, Any] = {"programs": bench.load(many)}
    product, dependencies = stage()
    script: list[str | Path] = [bench.python, "-I", "-S", HERE / "child" / "updates.py"]
    script += [product, dependencies, OBJECTS / "flood.bpf.o"]
    with progress("10,000 updates of a map"):
        result["updates"] = _facts(script, {})
    result["ring"] = {}
    for size in _SIZES:
        with progress(f"{_EVENTS:,} events of {size} bytes"):
            result["ring"][str(size)] = {
                way: _ring(bench, way, size, _EVENTS) for way in ("read", "consume", "libbpf")
            }
    with progress(f"{_FLAT:,} events of 64 bytes"):
        result["flat"] = _ring(bench, "read", 64, _FLAT)
    return result


def scale_text(scale: Mapping[str, Any]) -> str:
    """The results of ``measure`` in words and a table."""
    updates, flat = scale["updates"], scale["flat"]
    rows = [
        [
            f"{size} bytes, {'C on libbpf' if way == 'libbpf' else way}",
            number(row["events_per_s"] / 1e3),
            number(row["bytes_per_s"] / 1e6),
            number(row["events_per_cpu_s"] / 1e3),
            f"{row['dropped']:,.0f}",
            number(row["events_per_s"] / ways["libbpf"]["events_per_s"]),
        ]
        for size, ways in scale["ring"].items()
        for way, row in ways.items()
    ]
    programs = scale["programs"]
    loads = [
        [
            name,
            *(
                spread(Summary(**{**row[key], "interval": None})) if key in row else ""
                for key in ("whole_ms", "cpu_over_libbpf", "in_process_over_libbpf")
            ),
        ]
        for name, row in programs["contenders"].items()
    ]
    return "\n\n".join(
        (
            f"{programs['programs']:.0f} programs in one object:\n"
            + render(["", "whole ms", "CPU ÷ libbpf", "in process ÷ libbpf"], loads),
            f"10,000 updates of a hash map: {updates['single']:.1f} ms one by one, "
            f"{updates['batch']:.2f} ms at once ({updates['single'] / updates['batch']:.0f} "
            "times as fast); best of 5 rounds.",
            f"Ring buffer of 1 MiB, one producer that never waits, {_EVENTS:,} events seen:\n"
            + render(
                ["", "1,000 events/s", "MB/s", "1,000 events/CPU s", "dropped", "÷ libbpf"], rows
            ),
            f"{flat['events']:,.0f} events of 64 bytes with read(): {flat['seconds']:.1f} s, "
            f"{flat['dropped']:,.0f} dropped; {flat['grown'] / 1024:,.0f} KiB more resident at "
            "the end than after the first hundredth.",
        )
    )
