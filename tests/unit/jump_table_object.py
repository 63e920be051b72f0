# SPDX-License-Identifier: BSD-2-Clause
"""An object with jump tables, as LLVM 22 writes them: the compilers at hand do not."""

from __future__ import annotations

import struct

from tests.unit.elfwriter import ElfWriter, insn

__all__ = ["CASES", "SWITCH_SLOTS", "TABLE_AT", "build"]

TABLE_AT = 3  # slot of the 64-bit load
CASES = (8, 10, 12)  # slots
SWITCH_SLOTS = 16


def _switch(order: str) -> bytes:
    """int pick(u64 *number): 10, 20, 30 for 0, 1, 2 and 99 for everything else."""
    steps: list[tuple[int, ...]] = [
        (0x79, 2, 1),  # r2 = *(u64 *)(r1 + 0)
        (0x25, 2, 0, 12, 2),  # if r2 > 2 goto the last result
        (0x67, 2, 0, 0, 3),  # r2 <<= 3
        (0x18, 3),  # r3 = the table
        (0,),
        (0x0F, 3, 2),  # r3 += r2
        (0x79, 3, 3),  # r3 = *(u64 *)(r3 + 0)
        (0x0D, 3),  # gotox r3
    ]
    for result in (10, 20, 30, 99):
        steps += [(0xB7, 0, 0, 0, result), (0x95,)]
    out = b""
    for step in steps:
        code, dst, src, off, imm = (*step, 0, 0, 0, 0)[:5]
        out += insn(code, dst, src, off, imm, order)
    return out


def build(
    order: str = "<", *, entries: tuple[int, ...] = CASES, size: int | None = None, place: int = 0
) -> bytes:
    """Two programs: ``direct`` has the switch itself, ``through`` calls the subprogram ``pick``,
    which does not stand at the start of .text. Each has a table of its own.

    entries: slots in the table of ``direct``; size, place: what its symbol says.
    """
    elf = ElfWriter(order)
    switch = _switch(order)
    filler = insn(0xB7, order=order) + insn(0x95, order=order)
    text = elf.code(".text", filler + switch)
    direct = elf.code("syscall", switch)
    calls = insn(0xB7, 6, order=order) + insn(0x85, 0, 1, imm=-1, order=order)
    through = elf.code("?syscall", calls + insn(0x95, order=order))
    first = struct.pack(f"{order}{len(entries)}Q", *(8 * e for e in entries))
    second = struct.pack(f"{order}3Q", *(len(filler) + 8 * e for e in CASES))
    tables = elf.section(".jumptables", first + second)
    elf.function("filler", text, 0, len(filler))
    pick = elf.function("pick", text, len(filler), len(switch))
    elf.function("direct", direct, 0, len(switch))
    elf.function("through", through, 0, 24)
    own = elf.symbol("BPF.JT.0.0", tables, place, len(first) if size is None else size)
    other = elf.symbol("BPF.JT.1.0", tables, len(first), len(second))
    elf.relocate(direct, 8 * TABLE_AT, own)
    elf.relocate(text, len(filler) + 8 * TABLE_AT, other)
    elf.relocate(through, 8, pick)
    elf.symbol("LICENSE", elf.section("license", b"GPL\0"), 0, 4)
    return elf.build()
