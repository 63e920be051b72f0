# SPDX-License-Identifier: BSD-2-Clause
"""Writes BPF relocatables: what compilers would emit, and what they never would."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PROGBITS, SYMTAB, STRTAB, NOBITS, REL = 1, 2, 3, 8, 9
EXEC, WRITE, ALLOC = 4, 1, 2
LOCAL, GLOBAL, WEAK = 0, 1, 2
NOTYPE, OBJECT, FUNC, SECTION = 0, 1, 2, 3


@dataclass
class Part:
    """A section: its bytes, or the size of a NOBITS one."""

    name: str
    data: bytes = b""
    type: int = PROGBITS
    flags: int = ALLOC
    size: int | None = None
    relocations: list[tuple[int, int]] = field(default_factory=list)  # (offset, symbol number)


class ElfWriter:
    """Sections are numbered from 1, symbols from 1, in the order of adding."""

    def __init__(self, order: str = "<", *, machine: int = 247, etype: int = 1) -> None:
        self.order = order
        self.machine = machine
        self.etype = etype
        self.parts: list[Part] = []
        self.symbols: list[tuple[str, int, int, int, int, int, int]] = []

    def section(self, name: str, data: bytes = b"", **more: object) -> int:
        self.parts.append(Part(name, data, **more))  # type: ignore[arg-type]
        return len(self.parts)

    def code(self, name: str, data: bytes) -> int:
        return self.section(name, data, flags=ALLOC | EXEC)

    def symbol(
        self, name: str, section: int, value: int = 0, size: int = 0, *, kind: int = OBJECT,
        bind: int = GLOBAL, visibility: int = 0,
    ) -> int:  # fmt: skip
        self.symbols.append((name, section, value, size, kind, bind, visibility))
        return len(self.symbols)

    def function(self, name: str, section: int, value: int, size: int, **more: int) -> int:
        return self.symbol(name, section, value, size, kind=FUNC, **more)

    def extern(self, name: str, bind: int = GLOBAL) -> int:
        return self.symbol(name, 0, kind=NOTYPE, bind=bind)

    def relocate(self, section: int, offset: int, symbol: int) -> None:
        self.parts[section - 1].relocations.append((offset, symbol))

    def build(self) -> bytes:
        order = self.order
        strings = bytearray(b"\0")

        def string(text: str) -> int:
            at = len(strings)
            strings.extend(text.encode() + b"\0")
            return at if text else 0

        symbols = bytearray(24)
        for name, section, value, size, kind, bind, visibility in self.symbols:
            symbols += struct.pack(
                order + "IBBHQQ", string(name), bind << 4 | kind, visibility, section, value, size
            )
        rows: list[tuple[str, int, int, bytes, int, int, int, int]] = []
        count = len(self.parts)
        rels = [(i, p) for i, p in enumerate(self.parts, 1) if p.relocations]
        symtab = count + len(rels) + 1
        for part in self.parts:
            size = len(part.data) if part.size is None else part.size
            rows.append((part.name, part.type, part.flags, part.data, size, 0, 0, 0))
        for number, part in rels:
            data = b"".join(
                struct.pack(order + "QQ", at, symbol << 32 | 1) for at, symbol in part.relocations
            )
            rows.append((".rel" + part.name, REL, 0, data, len(data), symtab, number, 16))
        rows.append((".symtab", SYMTAB, 0, bytes(symbols), len(symbols), symtab + 1, 1, 24))
        names = [string(row[0]) for row in rows] + [string(".strtab")]
        rows.append((".strtab", STRTAB, 0, bytes(strings), len(strings), 0, 0, 0))
        body = bytearray()
        headers = bytearray(64)
        for name_at, (_, kind, flags, data, size, link, info, entry) in zip(
            names, rows, strict=True
        ):
            headers += struct.pack(
                order + "IIQQQQIIQQ", name_at, kind, flags, 0, 64 + len(body), size, link, info,
                8, entry,
            )  # fmt: skip
            body += data + bytes(-len(data) % 8)
        ident = b"\x7fELF\2" + (b"\1" if order == "<" else b"\2") + b"\1" + bytes(9)
        head = ident + struct.pack(
            order + "HHIQQQIHHHHHH", self.etype, self.machine, 1, 0, 0, 64 + len(body), 0, 64, 0,
            0, 64, len(rows) + 1, len(rows),
        )  # fmt: skip
        return head + bytes(body) + bytes(headers)


def insn(
    code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0, order: str = "<"
) -> bytes:
    regs = dst | src << 4 if order == "<" else dst << 4 | src
    return struct.pack(order + "BBhi", code, regs, off, imm)


EXIT = insn(0x95)
RETURN_0 = insn(0xB7, 0) + EXIT


def call(distance: int = -1) -> bytes:
    return insn(0x85, 0, 1, 0, distance)


def load(imm: int = 0, dst: int = 1, src: int = 0) -> bytes:
    return insn(0x18, dst, src, 0, imm) + bytes(8)
