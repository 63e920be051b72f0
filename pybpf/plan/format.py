# SPDX-License-Identifier: BSD-2-Clause
"""The formats of bundles, declared once with construct: for tools and tests.

``FILE`` is the frozen Plan, ``SELF_RUNNING`` the file that has the executor too. The executor
reads bundles with struct alone (``pybpf.plan.frozen``, ``pybpf.pyz.container``); tests hold the
readers together. ``describe`` gives the parsed file without building a Plan.
"""

from __future__ import annotations

from typing import Any

from construct import (
    Array,
    Bytes,
    Const,
    ConstructError,
    Error,
    GreedyBytes,
    GreedyRange,
    Int16ul,
    Int32ul,
    Int64sl,
    Int64ul,
    NullTerminated,
    Pass,
    RepeatUntil,
    Struct,
    Switch,
    Terminated,
    this,
)

from pybpf.errors import FormatError
from pybpf.plan.frozen import MAGIC

__all__ = ["ENTRY", "FILE", "SELF_RUNNING", "describe"]

_BODIES = {
    b"N": Pass,
    b"T": Pass,
    b"F": Pass,
    b"i": Int64sl,
    b"I": Bytes(this.n),
    b"b": Bytes(this.n),
    b"s": Bytes(this.n),
    b"t": Array(this.n, Int32ul),
    b"d": Array(this.n, Int32ul),
    b"o": Array(this.n, Int32ul),
}

ENTRY = Struct(
    "tag" / Bytes(1),
    "n" / Int32ul,
    "body" / Switch(this.tag, _BODIES, default=Error),
)

FILE = Struct(
    "magic" / Const(MAGIC),
    "version" / Int16ul,
    "reserved" / Int16ul,
    "count" / Int32ul,
    "length" / Int64ul,
    "sha256" / Bytes(32),
    "entries" / Array(this.count, ENTRY),
    Terminated,
)

_LINE = NullTerminated(GreedyBytes, term=b"\n")


def _section(letter: bytes) -> Any:
    """zlib's compression in base64, with "!" for "J" and "~" for "M", in lines: the first one
    after its mark, the others after "#+"."""
    more = Struct("mark" / Const(b"#+"), "packed" / _LINE)
    return Struct("mark" / Const(b"#" + letter), "packed" / _LINE, "more" / GreedyRange(more))


SELF_RUNNING = Struct(
    "coding" / Const(b"#coding:latin-1\n"),
    "magic" / Const(b"#pybpf bundle "),
    "version" / NullTerminated(GreedyBytes, term=b" "),
    "title" / _LINE,
    # One try statement of Python; its last line is this clause.
    "stub" / RepeatUntil(lambda line, _lines, _context: line[:18] == b"except ImportError", _LINE),
    "plan" / _section(b"P"),
    "code" / _section(b"c"),
    "code_on_demand" / _section(b"d"),
    "source" / _section(b"s"),
    "source_on_demand" / _section(b"t"),
    "crc" / Struct("mark" / Const(b"#="), "hex" / Bytes(8), "end" / Const(b"\n")),
    Terminated,
)


def describe(data: bytes) -> Any:
    """The construct Container of a frozen Plan. Raises FormatError with the field's path."""
    try:
        return FILE.parse(data)
    except ConstructError as error:
        raise FormatError(f"this is no frozen Plan: {error}") from None
