# SPDX-License-Identifier: BSD-2-Clause
"""What a self-running bundle carries for other versions of Python than the one that made it."""

from __future__ import annotations

import ast
import marshal
import shutil
import subprocess
import sys
from binascii import crc32
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest

from pybpf.pyz import build
from pybpf.pyz.merge import _source, merge
from tests.unit.test_frozen import DATA


def others() -> list[str]:
    """The other Pythons from 3.11 on that this machine runs."""
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    return [
        path
        for path in (*found, "/usr/bin/python3")
        if path
        and subprocess.run(
            [path, "-c", f"import sys; sys.exit(not (3, 11) <= sys.version_info[:2] != "
             f"{sys.version_info[:2]})"],
            stderr=subprocess.DEVNULL, check=False,
        ).returncode == 0
    ]  # fmt: skip


def test_no_source_has_an_f_string() -> None:
    """Python 3.12 writes them in a way that 3.11 does not read (PEP 701)."""
    first, later = map(marshal.loads, merge().sources())
    sources = [source for _, _, source in first] + list(later.values())
    assert len(sources) > 30
    for source in sources:
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)]


@pytest.mark.parametrize(
    "text",
    [
        "f'{a}'", "f'{a!r} and {b!s:>8}'", "f'{b:{c}d}{a}'", "f'{{{a}}} {b:#x}'",
        "f\"{f'{a}' + 'x'}{a[1:] + 'b' if b else ''}\"", "f'{b:0{c}{d}}|{a}'", "f'plain'", "f''",
        "f'{a!a:<{c}}' f'{b}'",
    ],
)  # fmt: skip
def test_f_strings_mean_the_same_as_calls_of_format(text: str) -> None:
    values = {"a": "ä{}", "b": 77, "c": 5, "d": "x"}
    changed = _source(ast.parse(text))
    assert "format" in changed
    assert eval(changed, dict(values)) == eval(text, dict(values))


@pytest.mark.parametrize("python", others() or [sys.executable])
def test_another_python_runs_it(python: str, tmp_path: Path) -> None:
    """Where there is no other: this one, on the sources alone."""
    path = tmp_path / "x.pyz"
    code = b"k=1 if m.MAGIC_NUMBER==" + repr(MAGIC_NUMBER).encode()
    data = build(DATA)
    assert code in data
    if python == sys.executable:
        data = data.replace(code, code[:-1] + b"x'")[:-11]
        data += b"#=%08x\n" % crc32(data)
    path.write_bytes(data)
    done = subprocess.run(
        [python, "-I", "-S", str(path), "--help"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-attach" in done.stdout
