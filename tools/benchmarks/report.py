# SPDX-License-Identifier: BSD-2-Clause
"""The results as text: tables of medians with quartiles, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.benchmarks.phases import PHASES
from tools.benchmarks.stats import Summary
from tools.benchmarks.table import number, render, spread

__all__ = ["guest_text", "host_text"]

#: Shown as columns, in the order of a process's life.
_PHASES = ("interpreter", "import", *PHASES, "rest", "end")
#: What the workloads do, in words.
_KINDS = {
    "exec": "spawn a program and wait",
    "map": "map a trusted file executable",
    "protect": "mprotect it to read, to executable",
    "anonymous": "map anonymous memory",
    "check": "execveat(AT_EXECVE_CHECK)",
    "trace": "readlink of another's /proc/PID/exe",
}


def _summary(value: Mapping[str, Any]) -> Summary:
    interval = value["interval"]
    return Summary(**{**value, "interval": None if interval is None else tuple(interval)})


def _cell(results: Mapping[str, Any], key: str) -> str:
    return spread(_summary(results[key])) if key in results else ""


def _middle(value: Mapping[str, Any]) -> str:
    return number(_summary(value).median)


def host_text(host: Mapping[str, Any]) -> str:
    """Everything of the host part."""
    parts = [_about(host["about"])]
    start = host["start"]
    parts.append(
        "Start of the interpreter (python3 -I -S) and imports: whole process\n"
        + render(
            ["", "whole ms", "over ctypes", "CPU ms", "over ctypes", "RSS MB"],
            [
                [
                    name,
                    _cell(row, "whole_ms"),
                    _cell(row, "whole_over_ctypes_ms"),
                    _cell(row, "cpu_ms"),
                    _cell(row, "cpu_over_ctypes_ms"),
                    _middle(row["rss_mb"]),
                ]
                for name, row in start.items()
            ],
        )
    )
    for name, subject in host["objects"].items():
        parts.append(_subject(name, subject))
    if host["missing"]:
        parts.append(f"Not there, so not measured: {', '.join(host['missing'])}.")
    return "\n\n".join(parts)


def _about(about: Mapping[str, Any]) -> str:
    return (
        f"Host: Linux {about['kernel']} {about['machine']}, {about['cpus']} CPUs, load "
        f"{about['load'][0]} at the start; {about['python']}; Debian's libbpf {about['libbpf']}; "
        f"{about['bpftool']}.\n"
        "Medians of paired rounds, quartiles in brackets; ratios are taken within each round.\n"
        "«whole»: from before the spawn to the end of the process. «in process»: from the first "
        "line after the imports at its top\n"
        "to all programs loaded; of the C program: open and load of libbpf. «CPU»: processor time "
        "of the process, which a\n"
        "busy machine disturbs less. RSS: peak resident set. Nothing is attached."
    )


def _subject(name: str, subject: Mapping[str, Any]) -> str:
    contenders = subject["contenders"]
    rows = [
        [
            contender,
            _cell(row, "whole_ms"),
            _cell(row, "in_process_ms"),
            _middle(row["cpu_ms"]),
            _middle(row["rss_mb"]),
            _cell(row, "whole_over_libbpf"),
            _cell(row, "whole_over_bpftool"),
            _cell(row, "cpu_over_libbpf"),
            _cell(row, "in_process_over_libbpf"),
        ]
        for contender, row in contenders.items()
    ]
    title = (
        f"{name}: {subject['programs']:.0f} programs, {subject['bytes']:,} bytes of ELF, "
        f"{subject['bundle_bytes']:,} of bundle ({subject['file']}, {subject['origin']})"
    )
    parts = [
        title,
        render(
            [
                "contender", "whole ms", "in process ms", "CPU ms", "RSS MB",
                "whole ÷ libbpf", "whole ÷ bpftool", "CPU ÷ libbpf", "in process ÷ libbpf",
            ],
            rows,
        ),
    ]  # fmt: skip
    if "phases" in subject:
        shown = [
            phase
            for phase in _PHASES
            if any(_summary(way[phase]).median > 0 for way in subject["phases"].values())
        ]
        parts.append(
            render(
                ["phases, ms", *shown],
                [
                    [way, *(_middle(values[phase]) for phase in shown)]
                    for way, values in subject["phases"].items()
                ],
            )
        )
    if "calls" in subject:
        parts.append(
            render(
                ["bpf(2)", "calls", "failed", "ms in them"],
                [
                    [way, str(row["calls"]), str(row["failed"]), _cell(row, "ms")]
                    for way, row in subject["calls"].items()
                ],
            )
        )
    return "\n".join(parts)


def guest_text(guest: Mapping[str, Any]) -> str:
    """Everything of the guest part, lane by lane."""
    parts = []
    for lane, result in guest.items():
        lines = [
            f"Guest, lane {lane}: Linux {result['kernel']}, emulated, one CPU, its clock counts "
            "instructions: «1 ns» is one\n"
            "instruction, as on a machine of 10^9 a second that misses no cache. These are no "
            "times of a real machine; they\n"
            "do not depend on how busy the host is. The ratios are the point."
        ]
        lines += _guest_tables(result)
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _guest_tables(result: Mapping[str, Any]) -> Iterator[str]:
    for name, contenders in result["loading"].items():
        yield f"Loading {name}, attaching nothing, each in a process of its own\n" + render(
            ["contender", "whole ms", "in process ms", "RSS MB", "whole ÷ C", "in process ÷ C"],
            [
                [
                    contender,
                    _cell(row, "whole_ms"),
                    _cell(row, "in_process_ms"),
                    _middle(row["rss_mb"]),
                    _cell(row, "whole_over_libbpf"),
                    _cell(row, "in_process_over_libbpf"),
                ]
                for contender, row in contenders.items()
            ],
        )
    ways = result["phases"]
    shown = [phase for phase in _PHASES if any(way.get(phase) for way in ways.values())]
    yield "Phases of loading fsaccess, ms\n" + render(
        ["", *shown],
        [
            [way, *(number(values.get(phase, 0.0)) for phase in shown)]
            for way, values in ways.items()
        ],
    )
    yield "Of the load of fsaccess from a bundle: operations of the plan, by kind\n" + render(
        ["operation", "number", "ms"],
        [
            [kind, f"{row['count']:.0f}", number(row["ms"])]
            for kind, row in result["operations"].items()
        ]
        + [[f"of these, {name}", "1", number(took)] for name, took in result["programs"].items()],
    )
    steps = result["enable_ms"]
    total = sum(_summary(value).median for value in steps.values())
    yield "Enabling, in a process that runs already, ms of each step\n" + render(
        ["", *steps, "all"], [["", *map(_middle, steps.values()), number(total)]]
    )
    yield (
        "Operations a second by state of the policy (off: not loaded), and time of one with the "
        "policy over without\n"
        + render(
            ["operation", "off", "audit", "on", "audit ÷ off", "on ÷ off"],
            [
                [
                    _KINDS.get(kind, kind),
                    *(_middle(row[state]) for state in ("off", "audit", "on")),
                    _cell(row, "audit_over_off"),
                    _cell(row, "on_over_off"),
                ]
                for kind, row in result["rates"].items()
            ],
        )
    )
    hooks = result["hooks"]
    denied = hooks.get("denied", {})
    rows = []
    for name in hooks["on"]:
        cells = [_a_call(hooks.get(state, {}).get(name)) for state in ("inert", "audit", "on")]
        rows.append([name, str(hooks["on"][name]["runs"]), *cells, _a_call(denied.get(name))])
    yield (
        "Nanoseconds a call of each program (BPF_ENABLE_STATS; the clock's own cost is in them), "
        "calls while on\n"
        + render(["program", "calls", "inert", "audit", "on, allowed", "on, denied"], rows)
    )
    for policy, acts in result.get("acts", {}).items():
        rows = [
            [act, _middle(row["off"]), _middle(row["on"]), _cell(row, "on_over_off")]
            for act, row in acts.items()
        ]
        yield f"Acts that {policy} allows to all, on a tmpfs, instructions of one\n" + render(
            ["act", "off", "on", "on ÷ off"], rows
        )
    for keep, boot in result["boot"].items():
        yield (
            f"Early boot by restrict init, keep = {keep} (the kernel alone: "
            f"{number(boot['kernel_ms'])} ms): ms since the first line of /init\n"
            + render(
                ["what it said", "ms"], [[text[:90], number(took)] for took, text in boot["said"]]
            )
        )
        ends = [*(time for time, _ in boot["begun"][1:]), boot["said"][-1][0]]
        yield "Its steps, ms of each\n" + render(
            ["step", "ms"],
            [
                [name, number(max(0.0, end - start))]
                for (start, name), end in zip(boot["begun"], ends, strict=True)
            ],
        )


def _a_call(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["runs"]:
        return ""
    return number(row["ns"] / row["runs"])
