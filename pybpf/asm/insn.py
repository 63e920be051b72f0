# SPDX-License-Identifier: BSD-2-Clause
"""Instructions: 8 bytes each, a 64-bit load two slots, in either byte order."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pybpf.asm.consts import CALL, LDIMM64, PSEUDO_CALL
from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["Instruction", "decode", "encode"]


class Instruction(NamedTuple):
    """One instruction (struct bpf_insn; a ldimm64 with both its slots).

    slot: its place in 8-byte units. off, imm: signed. high: imm of the second slot of a
    ldimm64, signed; 0 elsewhere.
    """

    slot: int
    opcode: int
    dst: int
    src: int
    off: int
    imm: int
    high: int = 0

    @property
    def slots(self) -> int:
        """Slots that it takes: 2 for a ldimm64, else 1."""
        return 2 if self.opcode == LDIMM64 else 1

    @property
    def imm64(self) -> int:
        """The constant of a ldimm64, unsigned."""
        return (self.high & 0xFFFFFFFF) << 32 | (self.imm & 0xFFFFFFFF)

    @property
    def helper(self) -> int | None:
        """Number of the helper that it calls, or None."""
        return self.imm if self.opcode == CALL and self.src == 0 else None

    @property
    def subprogram(self) -> int | None:
        """Slot of the subprogram that it calls, or None."""
        return self.slot + 1 + self.imm if self.opcode == CALL and self.src == PSEUDO_CALL else None


def decode(insns: bytes | bytearray | memoryview, byteorder: str = "little") -> list[Instruction]:
    """Decode instructions. Raises FormatError on odd lengths and half a ldimm64."""
    if len(insns) % 8:
        raise FormatError(f"{len(insns)} bytes are no whole number of instructions")
    little = byteorder == "little"
    rows = struct.iter_unpack("<BBhi" if little else ">BBhi", insns)
    found: list[Instruction] = []
    slot = 0
    for code, regs, off, imm in rows:
        low, top = regs & 0xF, regs >> 4
        dst, src = (low, top) if little else (top, low)
        high = 0
        if code == LDIMM64:
            second = next(rows, None)
            if second is None or second[0]:
                raise FormatError("a 64-bit load lacks its second half", insn=slot)
            high = second[3]
        found.append(Instruction(slot, code, dst, src, off, imm, high))
        slot += 2 if code == LDIMM64 else 1
    return found


def encode(instructions: Iterable[Instruction], byteorder: str = "little") -> bytes:
    """The bytes of instructions (``slot`` is not looked at)."""
    little = byteorder == "little"
    pack = struct.Struct("<BBhi" if little else ">BBhi").pack
    out = bytearray()
    for ins in instructions:
        regs = ins.src << 4 | ins.dst if little else ins.dst << 4 | ins.src
        out += pack(ins.opcode, regs, ins.off, ins.imm)
        if ins.opcode == LDIMM64:
            out += pack(0, 0, 0, ins.high)
    return bytes(out)
