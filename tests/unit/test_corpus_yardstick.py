# SPDX-License-Identifier: BSD-2-Clause
"""tools/corpus --objects: results made on the spot, whatever libbpf does with an object."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.corpus_yardstick import YardstickError, build, results

SCRIPT = """#!/bin/sh
# Prints a line an object; dies of those whose name says so, as a library with a bug would.
case "$1" in -b) shift 2;; esac
for object; do
    case "$object" in *bad*) kill -SEGV $$;; esac
    printf '{"object": "%s", "open_err": 0}\\n' "$object"
done
"""


def test_an_object_that_libbpf_crashes_on_is_told_alone(tmp_path: Path) -> None:
    program = tmp_path / "yardstick"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    objects = [tmp_path / name for name in ("a.o", "bad.o", "c.o")]
    found = list(results(program, objects, btf=tmp_path / "x.btf"))
    assert [Path(row["object"]).name for row in found] == ["a.o", "bad.o", "c.o"]
    assert [row.get("crashed") for row in found] == [None, -11, None]


def test_a_libbpf_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(YardstickError, match=r"no libbpf\.a"):
        build(tmp_path)
