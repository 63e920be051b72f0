# SPDX-License-Identifier: BSD-2-Clause
"""marshal's bytes in one form only.

marshal marks an object as one that may come again when anything in the process refers to it a
second time, and writes a string as interned when it happens to be: so equal code gives unequal
bytes. ``canonical`` writes a stream anew: what is the same is written once, only what comes again
is marked, and text is interned. Marshal's format, version 4 (Python/marshal.c), of 3.11 to 3.14.
"""

from __future__ import annotations

import marshal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["canonical"]

_REF = 0x80
_PLAIN = b"0NFTSE."  # NULL, None, False, True, StopIteration, Ellipsis
# What a code object consists of, in order: l a number of 4 bytes, o an object.
_CODE = "lllll" + "oooooooo" + "l" + "oo"

_Node = tuple[bytes, bytes, tuple[int, ...]]  # (type code, own bytes, numbers of the parts)


def canonical(value: Any) -> bytes:
    """marshal.dumps(value), the same bytes for equal values. For constants, code, and tuples and
    dicts of them; ValueError for others."""
    reader = _Reader(marshal.dumps(value))
    top = reader.read()
    if reader.at != len(reader.data):
        raise ValueError("marshal wrote more than one object")
    return _Writer(reader.nodes).write(top)


class _Reader:
    """Reads a stream into nodes, in which equal values are one."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.nodes: list[_Node] = []
        self._numbers: dict[_Node, int] = {}
        self._refs: list[int] = []

    def _take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def _long(self) -> int:
        number: int = struct.unpack("<i", self._take(4))[0]
        return number

    def _node(self, code: bytes, body: bytes = b"", parts: tuple[int, ...] = ()) -> int:
        node = code, body, parts
        number = self._numbers.setdefault(node, len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append(node)
        return number

    def read(self) -> int:
        first = self._take(1)[0]
        code = bytes((first & ~_REF,))
        if code == b"r":
            return self._refs[self._long()]
        place = len(self._refs)
        if first & _REF:
            self._refs.append(-1)
        number = self._object(code)
        if first & _REF:
            self._refs[place] = number
        return number

    def _object(self, code: bytes) -> int:
        if code in _PLAIN:
            return self._node(code)
        if code == b"i":
            return self._node(code, self._take(4))
        if code == b"l":
            size = self._long()
            return self._node(code, struct.pack("<i", size) + self._take(2 * abs(size)))
        if code == b"g":
            return self._node(code, self._take(8))
        if code == b"s":
            size = self._long()
            return self._node(code, struct.pack("<i", size) + self._take(size))
        if code in b"zZaAut":
            size = self._take(1)[0] if code in b"zZ" else self._long()
            text = self._take(size)
            if code in b"ut" and not text.isascii():
                return self._node(b"t", struct.pack("<i", size) + text)
            if size < 256:
                return self._node(b"Z", bytes((size,)) + text)
            return self._node(b"A", struct.pack("<i", size) + text)
        if code in b")(<>":
            size = self._take(1)[0] if code == b")" else self._long()
            parts = tuple(self.read() for _ in range(size))
            if code in b")(":
                return self._node(b")" if size < 256 else b"(", b"", parts)
            return self._node(code, b"", parts)
        if code == b"{":
            parts_of: list[int] = []
            while self.data[self.at] != 0x30:
                parts_of.append(self.read())
            self.at += 1
            return self._node(code, b"", tuple(parts_of))
        if code == b"c":
            numbers = bytearray()
            parts_of = []
            for letter in _CODE:
                if letter == "l":
                    numbers += self._take(4)
                else:
                    parts_of.append(self.read())
            return self._node(code, bytes(numbers), tuple(parts_of))
        raise ValueError(f"marshal's type {code!r} is not expected here")


class _Writer:
    def __init__(self, nodes: list[_Node]) -> None:
        self._nodes = nodes
        self._uses = [0] * len(nodes)
        self._refs: dict[int, int] = {}
        self._out = bytearray()

    def write(self, top: int) -> bytes:
        self._count(top)
        self._write(top)
        return bytes(self._out)

    def _count(self, number: int) -> None:
        self._uses[number] += 1
        if self._uses[number] == 1:
            for part in self._nodes[number][2]:
                self._count(part)

    def _write(self, number: int) -> None:
        if number in self._refs:
            self._out += b"r" + struct.pack("<i", self._refs[number])
            return
        code, body, parts = self._nodes[number]
        again = self._uses[number] > 1 and code not in _PLAIN
        if again:
            self._refs[number] = len(self._refs)
        self._out.append(code[0] | (_REF if again else 0))
        if code == b"c":
            rest = iter(parts)
            at = 0
            for letter in _CODE:
                if letter == "l":
                    self._out += body[at : at + 4]
                    at += 4
                else:
                    self._write(next(rest))
            return
        if code == b")":
            self._out.append(len(parts))
        elif code in b"(<>":
            self._out += struct.pack("<i", len(parts))
        self._out += body
        for part in parts:
            self._write(part)
        if code == b"{":
            self._out += b"0"
