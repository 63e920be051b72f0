# SPDX-License-Identifier: BSD-2-Clause
"""Writing the frozen form of a Plan; the format is in ``pybpf.plan.frozen``, which reads it."""

from __future__ import annotations

import struct

from pybpf.errors import FormatError
from pybpf.plan import ops as _ops
from pybpf.plan.frozen import CLASSES, ENTRY, HEADER, MAGIC, VERSION, sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["to_bytes"]


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.numbers: dict[tuple[str, Any], int] = {}

    def add(self, value: Any) -> int:
        """The number of ``value``'s entry, written if it is new."""
        kind = type(value)
        if value is None or kind is bool:
            return self._entry("N" if value is None else "T" if value else "F", b"")
        if kind is int:
            if -(1 << 63) <= value < 1 << 63:
                return self._entry("i", struct.pack("<q", value))
            size = (value.bit_length() + 8) // 8
            return self._entry("I", value.to_bytes(size, "little", signed=True))
        if kind is bytes:
            return self._entry("b", value)
        if kind is str:
            return self._entry("s", value.encode("utf-8", "surrogatepass"))
        if kind is tuple or kind is list:
            return self._many("t", [self.add(item) for item in value])
        if kind is dict:
            return self._many("d", [self.add(x) for pair in value.items() for x in pair])
        if kind in CLASSES:
            fields = [self.add(getattr(value, name)) for name in value.FIELDS]
            return self._many("o", [CLASSES.index(kind), *fields])
        raise FormatError(f"a Plan cannot carry a {kind.__name__}: {value!r}")

    def _many(self, tag: str, numbers: list[int]) -> int:
        return self._entry(tag, struct.pack(f"<{len(numbers)}I", *numbers), len(numbers))

    def _entry(self, tag: str, body: bytes, count: int | None = None) -> int:
        key = (tag, body)
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.numbers)
            self.out += ENTRY.pack(ord(tag), len(body) if count is None else count)
            self.out += body
        return number


def to_bytes(plan: _ops.Plan) -> bytes:
    """The frozen form of ``plan``; equal Plans give equal bytes.

    Raises FormatError if a field holds what a Plan may not hold.
    """
    writer = _Writer()
    writer.add(plan)
    payload = bytes(writer.out)
    head = HEADER.pack(MAGIC, VERSION, 0, len(writer.numbers), len(payload), sha256(payload))
    return head + payload
