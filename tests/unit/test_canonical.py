# SPDX-License-Identifier: BSD-2-Clause
"""One form of marshal's bytes: they mean what marshal's own mean, whatever the process knows."""

from __future__ import annotations

import marshal
import sys
from pathlib import Path
from typing import Any

import pytest

from pybpf.pyz.canonical import canonical

ROOMS = Path(__file__).resolve().parent.parent.parent / "pybpf"
VALUES: list[Any] = [
    None, True, False, ..., 0, -1, 1 << 31, -(1 << 62), 1 << 200, 1.5, b"", b"x" * 300, "", "name",
    "ä€😀", "x" * 300, "\udc80", (), (1, (2, (3,))), tuple(range(300)), ("a", "a", b"a", b"a"),
    frozenset({1}), {"a": 1, "b": ("a", "b")},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_there_and_back(value: Any) -> None:
    again = marshal.loads(canonical(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("name", ["plan/run.py", "sys/bpf.py", "plan/ops.py", "errors.py"])
def test_code(name: str) -> None:
    code = compile((ROOMS / name).read_text(), name, "exec", dont_inherit=True)
    data = canonical(code)
    assert marshal.loads(data) == code
    assert canonical(marshal.loads(data)) == data


def test_what_the_process_knows_does_not_show() -> None:
    source = "def function(argument):\n    return 'some text', argument, 12345\n"
    before = canonical(compile(source, "f", "exec"))
    kept = [sys.intern(word) for word in ("some text", "argument", "function", "f")]
    held = compile(source, "f", "exec")
    assert canonical(held) == before
    assert kept
    assert canonical(("same", "sa" + "me")) == canonical(("same", "same"))


def test_other_things_are_refused() -> None:
    with pytest.raises(ValueError):
        canonical([1, 2])
