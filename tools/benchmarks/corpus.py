# SPDX-License-Identifier: BSD-2-Clause
"""The corpus part: how long every object of the corpus takes to load, against bpftool.

Each object is loaded as a whole, by processes of their own that take turns in rounds: the ELF by
pybpf with all its imports, the same frozen to a bundle that runs by itself, and `bpftool prog
loadall`. An object that this host's kernel refuses (fentry and LSM programs where trampolines are
not allowed, maps whose size is left to the loader) is timed up to the refusal, and told apart:
its ratios stay out of the summary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmarks.build import HERE
from tools.benchmarks.errors import BenchError
from tools.benchmarks.host import HostBench
from tools.benchmarks.objects import Subject
from tools.benchmarks.stats import Summary, paired_ratios, summarise
from tools.benchmarks.table import number, render, spread
from tools.guest.cache import progress

__all__ = ["corpus_text", "measure", "subjects"]

ELF, BUNDLE, BPFTOOL = "elf", "bundle", "bpftool"
_WARM_UP = 1


class Run(NamedTuple):
    """One process: milliseconds from spawn to end, of processor time, its status, what it said."""

    whole: float
    cpu: float
    status: int
    said: str


def subjects(corpus: Path) -> list[Subject]:
    """Every object of the corpus, by folder and file name."""
    found = [
        Subject(f"{path.parent.name}/{path.name.removesuffix('.bpf.o')}", path, "corpus")
        for path in sorted(corpus.rglob("*.bpf.o"))
    ]
    if not found:
        raise BenchError(f"there are no objects in {corpus}")
    return found


def _run(words: Sequence[str | Path], errors: Path) -> Run:
    """Run a command to its end, whatever that is."""
    command = [str(word) for word in words]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(errors), flags, 0o600),
    ]
    started = time.monotonic_ns()
    try:
        child = os.posix_spawn(command[0], command, {"PATH": os.defpath}, file_actions=actions)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed") from None
    _, status, usage = os.wait4(child, 0)
    took = time.monotonic_ns() - started
    lines = errors.read_text(errors="replace").strip().splitlines()
    # A traceback ends with what matters; libbpf begins with it.
    said = lines[-1] if lines and lines[0].startswith("Traceback") else (lines or [""])[0]
    cpu = 1000 * (usage.ru_utime + usage.ru_stime)
    return Run(took / 1e6, cpu, os.waitstatus_to_exitcode(status), said)


def _clean(pins: Path) -> None:
    if pins.is_dir():
        for path in pins.iterdir():
            path.unlink()
        pins.rmdir()


def _commands(bench: HostBench, subject: Subject, pins: Path) -> dict[str, list[str | Path]]:
    script: list[str | Path] = [bench.python, "-I", "-S", HERE / "child" / "load_elf.py"]
    commands: dict[str, list[str | Path]] = {
        ELF: [*script, bench.product, bench.dependencies, subject.path, "kernel"],
        BPFTOOL: ["/usr/sbin/bpftool", "prog", "loadall", subject.path, pins],
    }
    try:
        plain = Subject(subject.name.replace("/", "-"), subject.path, subject.origin)
        bundle = bench.self_running(bench.bundle_of(plain))
        commands[BUNDLE] = [bench.python, "-I", "-S", bundle, "--no-attach"]
    except BenchError:
        pass  # what cannot be compiled is refused as an ELF too, with its reason
    return commands


def _one(bench: HostBench, subject: Subject, rounds: int) -> dict[str, Any]:
    pins = bench.bpffs / "corpus"
    errors = bench.folder / "errors"
    commands = _commands(bench, subject, pins)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(_WARM_UP + rounds):
        order = list(commands) if turn % 2 else list(reversed(commands))
        for name in order:
            found = _run(commands[name], errors)
            _clean(pins)
            if turn >= _WARM_UP:
                runs[name].append(found)
    theirs = runs[BPFTOOL]
    return {
        "loaded": all(run.status == 0 for found in runs.values() for run in found),
        "refused": {
            name: next(run.said for run in found if run.status)
            for name, found in runs.items()
            if any(run.status for run in found)
        },
        **{
            name: {
                "whole_ms": summarise([run.whole for run in found]).json(),
                "cpu_ms": summarise([run.cpu for run in found]).json(),
            }
            for name, found in runs.items()
        },
        "ratios": {
            name: {
                "whole": summarise(
                    paired_ratios([r.whole for r in runs[name]], [r.whole for r in theirs])
                ).json(),
                "cpu": summarise(
                    paired_ratios([r.cpu for r in runs[name]], [r.cpu for r in theirs])
                ).json(),
            }
            for name in (ELF, BUNDLE)
            if name in runs
        },
    }


def measure(bench: HostBench, corpus: Path, rounds: int) -> dict[str, Any]:
    """{"rounds", "objects": {name: …}, "summary": {…}}; ratios are to bpftool, within rounds."""
    objects: dict[str, Any] = {}
    wanted = subjects(corpus)
    with progress(f"{len(wanted)} objects of the corpus, {rounds} rounds each"):
        for subject in wanted:
            objects[subject.name] = _one(bench, subject, rounds)
    return {"rounds": rounds, "objects": objects, "summary": _summary(objects)}


def _summary(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Over the objects that all contenders loaded: their median ratios."""
    loaded = [row for row in objects.values() if row["loaded"]]
    out: dict[str, Any] = {"objects": len(objects), "loaded": len(loaded)}
    for name in (ELF, BUNDLE):
        for what in ("whole", "cpu"):
            values = [row["ratios"][name][what]["median"] for row in loaded]
            if values:
                out[f"{name}_{what}"] = summarise(values).json()
    out["refused_by_one"] = sorted(
        name
        for name, row in objects.items()
        if not row["loaded"] and (ELF in row["refused"]) != (BPFTOOL in row["refused"])
    )
    out["refused"] = len(objects) - len(loaded)
    return out


def _told(value: Mapping[str, Any]) -> str:
    interval = value["interval"]
    return spread(Summary(**{**value, "interval": tuple(interval) if interval else None}))


def corpus_text(found: Mapping[str, Any]) -> str:
    """The whole part as text: a line an object, refusals behind it, and the summary."""
    rows = []
    refused = []
    for name, row in found["objects"].items():
        mark = "" if row["loaded"] else " *"
        ratios = row["ratios"]
        rows.append(
            [
                name + mark,
                *(number(row[who]["whole_ms"]["median"]) if who in row else ""
                  for who in (ELF, BUNDLE, BPFTOOL)),
                *(_told(ratios[who][what]) if who in ratios else ""
                  for who in (ELF, BUNDLE) for what in ("whole", "cpu")),
            ]
        )  # fmt: skip
        for who, said in row["refused"].items():
            refused.append(f"  * {name}, {who}: {said[:160]}")
    summary = found["summary"]
    head = (
        f"Corpus, {found['rounds']} rounds: median ms of whole processes, and ratios to bpftool "
        "prog loadall within rounds (quartiles)"
    )
    table = render(
        ["", "ELF ms", "bundle ms", "bpftool ms", "ELF whole", "ELF CPU", "bundle whole",
         "bundle CPU"], rows,
    )  # fmt: skip
    lines = [
        f"{summary['objects']} objects, {summary['loaded']} of which all three load; medians of "
        "those (quartiles over objects):"
    ]
    names = {ELF: "ELF, cold", BUNDLE: "bundle that runs by itself"}
    for who, label in names.items():
        if f"{who}_whole" in summary:
            whole, cpu = summary[f"{who}_whole"], summary[f"{who}_cpu"]
            lines.append(
                f"  {label}: {_told(whole)} of bpftool's time, processor time {_told(cpu)}, "
                f"at most {number(whole['most'])}"
            )
    if summary["refused_by_one"]:
        lines.append(f"  refused by one loader only: {', '.join(summary['refused_by_one'])}")
    parts = [head, table]
    if refused:
        parts.append("Refused, and timed up to there:\n" + "\n".join(refused))
    parts.append("\n".join(lines))
    return "\n\n".join(parts)
