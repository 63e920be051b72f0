# SPDX-License-Identifier: BSD-2-Clause
"""The corpus part of tools/bench: what is told of objects, loaded and refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tools.benchmarks import corpus
from tools.benchmarks.errors import BenchError
from tools.benchmarks.stats import summarise


def _row(ratio: float, **refused: str) -> dict[str, Any]:
    times = {"whole_ms": summarise([10.0]).json(), "cpu_ms": summarise([9.0]).json()}
    ratios = {"whole": summarise([ratio]).json(), "cpu": summarise([ratio / 2]).json()}
    return {
        "loaded": not refused,
        "refused": refused,
        **dict.fromkeys((corpus.ELF, corpus.BUNDLE, corpus.BPFTOOL), times),
        "ratios": {corpus.ELF: ratios, corpus.BUNDLE: ratios},
    }


def test_refused_objects_stay_out_of_the_summary() -> None:
    objects = {
        "a/one": _row(2.0),
        "a/two": _row(4.0),
        "b/all": _row(100.0, elf="no", bundle="no", bpftool="no"),
        "b/bpftool": _row(100.0, bpftool="libbpf: failed"),
    }
    summary = corpus._summary(objects)
    assert (summary["objects"], summary["loaded"], summary["refused"]) == (4, 2, 2)
    assert summary["elf_whole"]["median"] == 3.0
    assert summary["bundle_cpu"]["most"] == 2.0
    assert summary["refused_by_one"] == ["b/bpftool"]
    text = corpus.corpus_text({"rounds": 1, "objects": objects, "summary": summary})
    assert "4 objects, 2 of which all three load" in text
    assert "b/all *" in text
    assert "b/bpftool, bpftool: libbpf: failed" in text
    assert "refused by one loader only: b/bpftool" in text


def test_a_process_may_fail(tmp_path: Path) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('last')"
    found = corpus._run([sys.executable, "-I", "-S", "-c", code], tmp_path / "errors")
    assert (found.status, found.said) == (1, "first")
    assert found.cpu > 0
    assert found.whole > 0
    failed = corpus._run([sys.executable, "-I", "-S", "-c", "int('x')"], tmp_path / "errors")
    assert failed.said.startswith("ValueError")
    with pytest.raises(BenchError, match="not installed"):
        corpus._run([tmp_path / "nothing"], tmp_path / "errors")


def test_every_object(tmp_path: Path) -> None:
    for name in ("b/y.bpf.o", "a/x.bpf.o", "a/x.bpf.c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [subject.name for subject in corpus.subjects(tmp_path)] == ["a/x", "b/y"]
    with pytest.raises(BenchError, match="no objects"):
        corpus.subjects(tmp_path / "a" / "x.bpf.c")
