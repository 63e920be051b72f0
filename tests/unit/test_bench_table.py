# SPDX-License-Identifier: BSD-2-Clause
"""The benchmark's tables, its stopwatch, and that the phases' borders are where it looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.benchmarks.errors import BenchError
from tools.benchmarks.launch import _printed
from tools.benchmarks.objects import choose
from tools.benchmarks.phases import BORDERS, PHASES, Stopwatch, resolve
from tools.benchmarks.report import host_text
from tools.benchmarks.stats import summarise
from tools.benchmarks.table import number, render, spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0123, "0.0123"), (0.123, "0.123"), (0.99949, "0.999"), (0.9997, "1.00"),
        (1.234, "1.23"), (9.994, "9.99"), (9.996, "10.0"), (12.34, "12.3"), (99.94, "99.9"),
        (99.96, "100"), (12345.6, "12,346"), (-1.234, "-1.23"), (-0.0123, "-0.0123"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_spread_is_median_and_quartiles() -> None:
    assert spread(summarise([1.0, 2.0, 3.0, 4.0, 5.0])) == "3.00 (2.00..4.00)"


def test_table() -> None:
    text = render(["what", "ms"], [["a", "1.0"], ["long name", "123"]])
    assert text.splitlines() == [
        "  what        ms",
        "  ---------  ---",
        "  a          1.0",
        "  long name  123",
    ]


def test_rows_must_fit_the_headers() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        render(["a", "b"], [["x"]])


class _Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_stopwatch_charges_the_innermost_phase() -> None:
    clock = _Clock()
    watch = Stopwatch(clock)

    def inner() -> None:
        clock.now += 5

    timed_inner = watch.wrap(inner, "inner")

    def outer() -> None:
        clock.now += 1
        timed_inner()
        clock.now += 2
        timed_inner()
        raise KeyError

    clock.now += 100
    with pytest.raises(KeyError):
        watch.wrap(outer, "outer")()
    clock.now += 10
    watch.stop()
    assert watch.nanoseconds == {"rest": 110, "outer": 3, "inner": 10}
    assert watch.calls == {"outer": 1, "inner": 2}


@pytest.mark.parametrize("border", BORDERS)
def test_every_border_is_a_function_of_the_product(border: str) -> None:
    _, name, held = resolve(border)
    assert BORDERS[border] in PHASES
    function = getattr(held, "__func__", held)
    assert callable(function)
    assert function.__name__ == name


def test_what_a_process_prints() -> None:
    marks, facts = _printed("mark first 3000000\nprograms 2\nsome words here\nx y\n", 1_000_000)
    assert marks == {"first": 2.0}
    assert facts == {"programs": 2.0}


def test_objects_of_a_corpus_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "opensnoop-x.1.bpf.o").write_bytes(b"")
    (tmp_path / "tools" / "opensnoopy-x.1.bpf.o").write_bytes(b"")
    found, missing = choose(["opensnoop", "absent"], tmp_path)
    assert [(subject.name, subject.path.name) for subject in found] == [
        ("opensnoop", "opensnoop-x.1.bpf.o")
    ]
    assert missing == ["absent"]


def test_no_object_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="absent"):
        choose(["absent"], tmp_path)
    with pytest.raises(BenchError, match=r"gone\.o"):
        choose([str(tmp_path / "gone.o")], None)


def _host_result() -> dict[str, Any]:
    some = summarise([1.0, 2.0, 3.0]).json()
    row = {
        "whole_ms": some, "cpu_ms": some, "rss_mb": some, "whole_over_libbpf": some,
        "whole_over_bpftool": some, "cpu_over_libbpf": some, "cpu_over_bpftool": some,
    }  # fmt: skip
    marked = {**row, "in_process_ms": some, "in_process_over_libbpf": some}
    phases = dict.fromkeys(("interpreter", "import", *PHASES, "rest", "end"), some)
    return {
        "about": {
            "kernel": "6.0", "machine": "x", "cpus": 1, "load": [0.5, 0.5], "python": "Python",
            "libbpf": "1.1", "bpftool": "v7",
        },
        "start": {"nothing": {**row, "whole_over_ctypes_ms": some, "cpu_over_ctypes_ms": some}},
        "objects": {
            "thing": {
                "file": "thing.bpf.o", "origin": "own", "bytes": 12345, "bundle_bytes": 678,
                "programs": 2.0, "contenders": {"bundle": marked, "bpftool loadall": row},
                "phases": {"bundle": phases},
                "calls": {"bundle": {"calls": 9, "failed": 0, "ms": some, "commands": {}}},
            }
        },
        "missing": ["other"],
    }  # fmt: skip


def test_host_report_says_what_was_measured_and_what_not() -> None:
    # As it is after JSON, where tuples are lists.
    text = host_text(json.loads(json.dumps(_host_result())))
    assert "Linux 6.0" in text
    assert "thing: 2 programs, 12,345 bytes of ELF, 678 of bundle" in text
    assert "Not there, so not measured: other." in text
    line = next(line for line in text.splitlines() if line.startswith("  bpftool loadall"))
    assert "2.00 (1.50..2.50)" in line
