# SPDX-License-Identifier: BSD-2-Clause
"""Commands whose standard streams are closed, full or read by nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent.parent
OBJECT = "tests/objects/features.bpf.o"
COMMANDS = [
    ("pybpf.cli:console", ["--version"]),
    ("pybpf.cli:console", ["inspect", OBJECT]),
    ("pybpf.cli:console", ["inspect", "no such file"]),
    ("restrict.cli:main", ["--version"]),
]


def run(entry: str, words: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """As the installed command does it, by a shell that redirects."""
    module, _, function = entry.partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-W", "error", "-c", code,
         *words],
        cwd=TREE, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(TREE)},
    )  # fmt: skip


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("entry", "words"), COMMANDS)
def test_closed_streams(entry: str, words: list[str], redirection: str) -> None:
    plain = run(entry, words, "")
    done = run(entry, words, redirection)
    assert done.returncode == plain.returncode
    assert done.stderr == ("" if "2>" in redirection else plain.stderr)
    assert done.stdout == ("" if " >" in f" {redirection}" else plain.stdout)


@pytest.mark.parametrize(("entry", "words"), [c for c in COMMANDS if c[1][-1] != "no such file"])
def test_no_room(entry: str, words: list[str]) -> None:
    done = run(entry, words, ">/dev/full")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
