# SPDX-License-Identifier: BSD-2-Clause
"""Changing single fields of encoded instructions in place, in either byte order.

An instruction is 8 bytes: opcode, register pair, 16-bit offset, 32-bit immediate
(include/uapi/linux/bpf.h, struct bpf_insn). Slots are numbers of instructions.
"""

from __future__ import annotations

import struct

from pybpf.sys import abi

__all__ = ["CALL", "LDIMM64", "Code"]

CALL = 0x85  # BPF_JMP | BPF_CALL
LDIMM64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW, takes two slots


class Code:
    """A program's instructions, mutable. byteorder: "little" or "big"."""

    def __init__(self, insns: bytes | bytearray, byteorder: str) -> None:
        self.raw = bytearray(insns)
        self.little = byteorder == "little"
        self._order = "<" if self.little else ">"
        self._put_imm = struct.Struct(self._order + "i").pack_into

    def __len__(self) -> int:
        return len(self.raw) // 8

    def opcode(self, slot: int) -> int:
        """The first byte of an instruction."""
        return self.raw[8 * slot]

    def imm(self, slot: int) -> int:
        """The immediate, signed."""
        return int(struct.unpack_from(self._order + "i", self.raw, 8 * slot + 4)[0])

    def set_imm(self, slot: int, value: int) -> None:
        """Set the immediate; taken modulo 2**32."""
        struct.pack_into(self._order + "I", self.raw, 8 * slot + 4, value & 0xFFFFFFFF)

    def set_off(self, slot: int, value: int) -> None:
        """Set the 16-bit offset."""
        struct.pack_into(self._order + "h", self.raw, 8 * slot + 2, value)

    def set_source(self, slot: int, register: int) -> None:
        """Set the source register, which in calls and 64-bit loads says what imm means."""
        regs = self.raw[8 * slot + 1]
        if self.little:
            self.raw[8 * slot + 1] = register << 4 | (regs & 15)
        else:
            self.raw[8 * slot + 1] = (regs & 0xF0) | register

    def set_call(self, slot: int, start: int) -> None:
        """Let a call, or a load of a function's address, mean the function at slot ``start``."""
        if self.raw[8 * slot] == LDIMM64:
            self.set_source(slot, abi.BPF_PSEUDO_FUNC)
        self._put_imm(self.raw, 8 * slot + 4, start - slot - 1)

    def set_wide(self, slot: int, value: int) -> None:
        """Set the 64-bit immediate of a two-slot load."""
        self.set_imm(slot, value)
        self.set_imm(slot + 1, value >> 32)

    def poison(self, slot: int, count: int, number: int) -> None:
        """Make ``count`` slots calls of a helper that does not exist, as libbpf does.

        The verifier refuses them only where they can be reached.
        """
        packed = struct.pack(self._order + "BBhI", CALL, 0, 0, number & 0xFFFFFFFF)
        self.raw[8 * slot : 8 * (slot + count)] = packed * count
