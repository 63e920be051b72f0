# SPDX-License-Identifier: BSD-2-Clause
"""Writing a relocation's value into an instruction, or poisoning it.

Semantics: bpf_core_patch_insn() in tools/lib/bpf/relo_core.c.
"""

from __future__ import annotations

import struct

from pybpf.errors import RelocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["POISON", "Value", "patch", "poison"]

# imm of a poisoned instruction, a call of no helper: "bad relo". The verifier names it as
# "unknown#195896080" if, and only if, it can be reached.
POISON = 0xBAD2310
_CALL = 0x85  # BPF_JMP | BPF_CALL
_LDIMM64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_SIZE_MASK = 0x18
_SIZE_BYTES = {0x18: 8, 0x00: 4, 0x08: 2, 0x10: 1}  # BPF_DW, BPF_W, BPF_H, BPF_B
_BYTES_SIZE = {v: k for k, v in _SIZE_BYTES.items()}
_S16_MAX = 0x7FFF
_U64 = (1 << 64) - 1


class Value(NamedTuple):
    """What is known of a relocation once a target is chosen (struct bpf_core_relo_res).

    old, new: 64-bit values; old is what the compiler must have written when ``validate``.
    old_size, new_size: bytes of the accessed field, for loads and stores; 0: not known.
    resizable: whether the access may be widened or narrowed from old_size to new_size.
    """

    old: int
    new: int
    poison: bool = False
    validate: bool = True
    old_size: int = 0
    new_size: int = 0
    resizable: bool = True


def poison(insns: bytearray, at: int, byteorder: str) -> None:
    """Make the instruction at byte ``at`` (both slots of a ldimm64) invalid."""
    imm = POISON.to_bytes(4, "little" if byteorder == "little" else "big")
    bad = bytes((_CALL, 0, 0, 0)) + imm
    if insns[at] == _LDIMM64 and at + 16 <= len(insns):
        insns[at + 8 : at + 16] = bad
    insns[at : at + 8] = bad


def patch(insns: bytearray, at: int, value: Value, byteorder: str) -> str | None:
    """Write ``value`` into the instruction at byte ``at``.

    Gives None, or the reason why the instruction was poisoned instead.
    Raises RelocationError where the instruction is not one that fits the relocation.
    """
    if value.poison:
        poison(insns, at, byteorder)
        return "no matching target"
    order = "<" if byteorder == "little" else ">"
    code = insns[at]
    kind = code & 7
    if kind in (4, 7):  # BPF_ALU, BPF_ALU64
        if code & 8:
            raise RelocationError("an arithmetic instruction to relocate has a register operand")
        (imm,) = struct.unpack_from(order + "i", insns, at + 4)
        _check(value, imm & _U64, "imm")
        struct.pack_into(order + "I", insns, at + 4, value.new & 0xFFFFFFFF)
        return None
    if kind in (1, 2, 3):  # BPF_LDX, BPF_ST, BPF_STX
        return _patch_access(insns, at, value, order, byteorder)
    if code == _LDIMM64 and at + 16 <= len(insns):
        first = struct.unpack_from(order + "Bh", insns, at + 1)
        # src_reg: high nibble in little-endian objects, low nibble in big-endian ones
        src = first[0] >> 4 if byteorder == "little" else first[0] & 0xF
        if src or first[1] or any(insns[at + 8 : at + 12]):
            raise RelocationError("a 64-bit load to relocate is not a plain constant")
        low, high = (
            struct.unpack_from(order + "I", insns, at + 4)[0],
            struct.unpack_from(order + "I", insns, at + 12)[0],
        )
        _check(value, high << 32 | low, "imm64")
        struct.pack_into(order + "I", insns, at + 4, value.new & 0xFFFFFFFF)
        struct.pack_into(order + "I", insns, at + 12, value.new >> 32)
        return None
    raise RelocationError(f"an instruction with opcode {code:#04x} cannot be relocated")


def _patch_access(
    insns: bytearray, at: int, value: Value, order: str, byteorder: str
) -> str | None:
    (off,) = struct.unpack_from(order + "h", insns, at + 2)
    _check(value, off & _U64, "off")
    if value.new > _S16_MAX:
        raise RelocationError(
            f"the field's offset {value.new} does not fit a load or store (at most {_S16_MAX})."
        )
    if not value.resizable:
        poison(insns, at, byteorder)
        return (
            f"the field has {value.old_size} bytes in the program and {value.new_size} in the "
            "kernel, and only pointers and unsigned integers may be loaded in another size"
        )
    struct.pack_into(order + "h", insns, at + 2, value.new)
    if value.new_size != value.old_size:
        code = insns[at]
        have = _SIZE_BYTES[code & _SIZE_MASK]
        if have != value.old_size:
            raise RelocationError(
                f"a load or store takes {have} bytes where the field has {value.old_size}."
            )
        if value.new_size not in _BYTES_SIZE:
            raise RelocationError(
                f"the field has {value.new_size} bytes in the kernel, which no load has."
            )
        insns[at] = code & ~_SIZE_MASK | _BYTES_SIZE[value.new_size]
    return None


def _check(value: Value, have: int, where: str) -> None:
    """The compiler must have written the local value: else record and code disagree."""
    if value.validate and have != value.old:
        raise RelocationError(
            f"{where} of the instruction is {_signed(have)}, but the object's own BTF says "
            f"{_signed(value.old)}: code and BTF of the object do not belong together.",
            hint="Rebuild the object.",
        )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
