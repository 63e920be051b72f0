# SPDX-License-Identifier: BSD-2-Clause
"""Disassembly in the verifier's syntax, so that a listing and a verifier log can be compared.

Follows the output of kernel/bpf/disasm.c up to v7.x (load-acquire v6.15, gotox v6.19). What
the kernel prints from its own state (map ids, kfunc names) comes from functions of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pybpf.asm.consts import (
    ALU,
    ALU64,
    ATOMIC,
    JMP,
    JMP32,
    LD,
    LDIMM64,
    LDX,
    MEM,
    MEMSX,
    MODE_MASK,
    OP_MASK,
    PSEUDO_BTF_ID,
    PSEUDO_CALL,
    PSEUDO_FUNC,
    PSEUDO_KFUNC_CALL,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_IDX,
    PSEUDO_MAP_IDX_VALUE,
    PSEUDO_MAP_VALUE,
    SIZE_MASK,
    SRC_X,
    ST,
    STX,
)
from pybpf.asm.insn import Instruction, decode

__all__ = ["disasm", "format_insn", "lines"]

_ALU_OPS = (
    "+=", "-=", "*=", "/=", "|=", "&=", "<<=", ">>=",
    "neg", "%=", "^=", "=", "s>>=", "endian", "inval", "inval",
)  # fmt: skip
_JMP_OPS = (
    "jmp", "==", ">", ">=", "&", "!=", "s>", "s>=",
    "call", "exit", "<", "<=", "s<", "s<=", "inval", "inval",
)  # fmt: skip
_UNSIGNED = {0x00: "u32", 0x08: "u16", 0x10: "u8", 0x18: "u64"}
_SIGNED = {0x00: "s32", 0x08: "s16", 0x10: "s8", 0x18: "s64"}
_DIV, _NEG, _MOD, _MOV, _END = 0x30, 0x80, 0x90, 0xB0, 0xD0
_JA, _CALL_OP, _EXIT_OP, _JCOND = 0x00, 0x80, 0x90, 0xE0
_FETCH, _XCHG, _CMPXCHG, _LOAD_ACQ, _STORE_REL = 0x01, 0xE1, 0xF1, 0x100, 0x110
_ATOMIC_OPS = {0x00: ("+=", "add"), 0x40: ("|=", "or"), 0x50: ("&=", "and"), 0xA0: ("^=", "xor")}
_MAP_SOURCES = (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE)

Namer = Callable[[Instruction], "str | None"]


def disasm(
    insns: bytes | bytearray | memoryview,
    byteorder: str = "little",
    *,
    name: Namer | None = None,
) -> list[str]:
    """One line an instruction, "SLOT: (OPCODE) text". Raises FormatError (see decode()).

    name: gives a name for what an instruction refers to (a map, a helper, a kfunc, a
    subprogram), or None to have it as the verifier prints it.
    """
    return lines(decode(insns, byteorder), name)


def lines(instructions: Iterable[Instruction], name: Namer | None = None) -> list[str]:
    """As disasm(), of decoded instructions."""
    return [f"{ins.slot}: {format_insn(ins, name)}" for ins in instructions]


def format_insn(ins: Instruction, name: Namer | None = None) -> str:
    """One instruction, "(OPCODE) text"."""
    return f"({ins.opcode:02x}) {_FORMATS[ins.opcode & 7](ins, name)}"


def _alu(ins: Instruction, name: Namer | None) -> str:
    op = ins.opcode & OP_MASK
    wide = ins.opcode & 7 == ALU64
    reg = "r" if wide else "w"
    dst = f"{reg}{ins.dst}"
    if op == _END:
        if wide:
            how = "bswap"
        else:
            how = "be" if ins.opcode & SRC_X else "le"
        return f"r{ins.dst} = {how}{ins.imm} r{ins.dst}"
    if op == _NEG:
        return f"{dst} = -{dst}"
    sign = "s" if op in (_DIV, _MOD) and ins.off == 1 else ""
    word = sign + _ALU_OPS[op >> 4]
    if not ins.opcode & SRC_X:
        return f"{dst} {word} {ins.imm}"
    cast = ""
    if op == _MOV:
        if wide and ins.off == 1:
            return f"r{ins.dst} = addr_space_cast(r{ins.src}, {_high(ins)}, {ins.imm & 0xFFFF})"
        if wide and ins.off == -1:  # the kernel's own, after inlining
            return f"r{ins.dst} = &(void __percpu *)(r{ins.src})"
        if ins.off in (8, 16, 32):
            cast = f"(s{ins.off})"
    return f"{dst} {word} {cast}{reg}{ins.src}"


def _high(ins: Instruction) -> int:
    return (ins.imm & 0xFFFFFFFF) >> 16


def _at(size: str, reg: int, off: int) -> str:
    return f"*({size} *)(r{reg} {off:+d})"


def _stx(ins: Instruction, name: Namer | None) -> str:
    mode = ins.opcode & MODE_MASK
    size = _UNSIGNED[ins.opcode & SIZE_MASK]
    if mode == MEM:
        return f"{_at(size, ins.dst, ins.off)} = r{ins.src}"
    if mode != ATOMIC:
        return f"BUG_{ins.opcode:02x}"
    op = ins.imm
    place = f"({size} *)(r{ins.dst} {ins.off:+d})"
    bits = "64" if size == "u64" else ""
    if op in _ATOMIC_OPS:
        return f"lock *{place} {_ATOMIC_OPS[op][0]} r{ins.src}"
    if op & ~_FETCH in _ATOMIC_OPS:
        what = f"fetch_{_ATOMIC_OPS[op & ~_FETCH][1]}"
        return f"r{ins.src} = atomic{bits}_{what}({place}, r{ins.src})"
    if op == _CMPXCHG:
        return f"r0 = atomic{bits}_cmpxchg({place}, r0, r{ins.src})"
    if op == _XCHG:
        return f"r{ins.src} = atomic{bits}_xchg({place}, r{ins.src})"
    if op == _LOAD_ACQ:
        return f"r{ins.dst} = load_acquire(({size} *)(r{ins.src} {ins.off:+d}))"
    if op == _STORE_REL:
        return f"store_release({place}, r{ins.src})"
    return f"BUG_{ins.opcode:02x}"


def _st(ins: Instruction, name: Namer | None) -> str:
    mode = ins.opcode & MODE_MASK
    if mode == MEM:
        return f"{_at(_UNSIGNED[ins.opcode & SIZE_MASK], ins.dst, ins.off)} = {ins.imm}"
    if mode == ATOMIC:  # the kernel's own (v6.17)
        return "nospec"
    return f"BUG_st_{ins.opcode:02x}"


def _ldx(ins: Instruction, name: Namer | None) -> str:
    mode = ins.opcode & MODE_MASK
    if mode not in (MEM, MEMSX):
        return f"BUG_ldx_{ins.opcode:02x}"
    size = (_UNSIGNED if mode == MEM else _SIGNED)[ins.opcode & SIZE_MASK]
    return f"r{ins.dst} = {_at(size, ins.src, ins.off)}"


def _ld(ins: Instruction, name: Namer | None) -> str:
    mode = ins.opcode & MODE_MASK
    if ins.opcode == LDIMM64:
        return f"r{ins.dst} = {_imm64(ins, name)}"
    size = _UNSIGNED[ins.opcode & SIZE_MASK]
    if mode == 0x20:
        return f"r0 = *({size} *)skb[{ins.imm}]"
    if mode == 0x40:
        return f"r0 = *({size} *)skb[r{ins.src} + {ins.imm}]"
    return f"BUG_ld_{ins.opcode:02x}"


def _imm64(ins: Instruction, name: Namer | None) -> str:
    """As the verifier has it, or with the caller's name as bpftool has it."""
    called = name(ins) if name is not None and ins.src else None
    if called is None:
        return f"{ins.imm64:#x}"
    if ins.src in (PSEUDO_MAP_FD, PSEUDO_MAP_IDX):
        return f"map[{called}]"
    if ins.src in _MAP_SOURCES:
        return f"map[{called}][0]+{ins.high & 0xFFFFFFFF}"
    if ins.src == PSEUDO_FUNC:
        return f"subprog[{called}]"
    if ins.src == PSEUDO_BTF_ID:
        return f"&{called}"
    return called


def _jmp(ins: Instruction, name: Namer | None) -> str:
    op = ins.opcode & OP_MASK
    narrow = ins.opcode & 7 == JMP32
    if not narrow:
        if op == _CALL_OP:
            return _call(ins, name)
        if op == _EXIT_OP:
            return "exit"
    if op == _JA:
        if ins.opcode & SRC_X:
            return f"gotox r{ins.dst}"
        return f"gotol pc{ins.imm:+d}" if narrow else f"goto pc{ins.off:+d}"
    if op == _JCOND and not narrow:
        return f"may_goto pc{ins.off:+d}"
    reg = "w" if narrow else "r"
    other = f"{reg}{ins.src}" if ins.opcode & SRC_X else f"{ins.imm & 0xFFFFFFFF:#x}"
    return f"if {reg}{ins.dst} {_JMP_OPS[op >> 4]} {other} goto pc{ins.off:+d}"


def _call(ins: Instruction, name: Namer | None) -> str:
    if ins.opcode & SRC_X:
        return f"callx r{ins.dst}"
    called = name(ins) if name is not None else None
    if ins.src == PSEUDO_CALL:
        return f"call {called}" if called else f"call pc{ins.imm:+d}"
    if called is None:
        if ins.src == PSEUDO_KFUNC_CALL:
            called = "kernel-function"
        else:
            called = _helper_name(ins.imm)
    return f"call {called}#{ins.imm}"


def _helper_name(number: int) -> str:
    """ "bpf_map_lookup_elem" for 1; "unknown" for what is no helper."""
    from pybpf.sys.abi_helpers import HELPER_NAMES

    return f"bpf_{HELPER_NAMES[number]}" if 0 < number < len(HELPER_NAMES) else "unknown"


_FORMATS: dict[int, Callable[[Instruction, Namer | None], str]] = {
    LD: _ld,
    LDX: _ldx,
    ST: _st,
    STX: _stx,
    ALU: _alu,
    JMP: _jmp,
    JMP32: _jmp,
    ALU64: _alu,
}
