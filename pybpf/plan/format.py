# SPDX-License-Identifier: BSD-2-Clause
"""The frozen Plan's format, declared once with construct: for tools and tests.

The executor reads bundles with struct alone (``pybpf.plan.frozen``); a test holds the two
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
    Int16ul,
    Int32ul,
    Int64sl,
    Int64ul,
    Pass,
    Struct,
    Switch,
    Terminated,
    this,
)

from pybpf.errors import FormatError
from pybpf.plan.frozen import MAGIC

__all__ = ["ENTRY", "FILE", "describe"]

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


def describe(data: bytes) -> Any:
    """The construct Container of a frozen Plan. Raises FormatError with the field's path."""
    try:
        return FILE.parse(data)
    except ConstructError as error:
        raise FormatError(f"this is no frozen Plan: {error}") from None
