# SPDX-License-Identifier: BSD-2-Clause
"""Two BTFs and one instruction: the smallest CO-RE relocation."""

from __future__ import annotations

from collections.abc import Mapping

from pybpf.asm import Instruction, decode, encode
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.reloc.core import CoreRelocator, CoreTarget, Outcome
from pybpf.spec import CoreRelo

MOV_K = 0xB7  # r1 = imm
MOV32_K = 0xB4
ADD_K = 0x07
LDIMM64 = 0x18
LDX_W, LDX_H, LDX_B, LDX_DW = 0x61, 0x69, 0x71, 0x79
STX_W, ST_W = 0x63, 0x62
LDXSX_W = 0x81
MOV_X = 0xBF


def insn(opcode: int, value: int) -> Instruction:
    """An instruction that holds ``value`` where a relocation would look for it."""
    if opcode & 7 in (1, 2, 3):
        return Instruction(0, opcode, 1, 2, value, 0)
    low, high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    top = high - (1 << 32) if high >> 31 else high
    return Instruction(0, opcode, 1, 0, 0, signed, top if opcode == LDIMM64 else 0)


def relocate(
    local: BtfWriter | Btf,
    target: BtfWriter | Btf,
    type_id: int,
    access: str,
    kind: int,
    *,
    opcode: int = MOV_K,
    value: int = 0,
    modules: Mapping[str, Btf] | None = None,
) -> tuple[Instruction, Outcome]:
    """Relocate one instruction; gives it afterwards, and the account."""
    mine = local.btf(name="prog.bpf.o") if isinstance(local, BtfWriter) else local
    theirs = target.btf(name="vmlinux") if isinstance(target, BtfWriter) else target
    code = bytearray(encode([insn(opcode, value)], mine.byteorder))
    relocator = CoreRelocator(mine, CoreTarget(theirs, modules))
    (outcome,) = relocator.relocate(code, [CoreRelo(0, type_id, access, 0, kind)])
    assert outcome.after == bytes(code)
    return decode(code, mine.byteorder)[0], outcome
