# SPDX-License-Identifier: BSD-2-Clause
"""Numbers of the BPF instruction set (include/uapi/linux/bpf.h, bpf_common.h; RFC 9669)."""

from __future__ import annotations

__all__ = [
    "ALU",
    "ALU64",
    "ATOMIC",
    "CALL",
    "CLASS_MASK",
    "EXIT",
    "JMP",
    "JMP32",
    "LD",
    "LDIMM64",
    "LDX",
    "MEM",
    "MEMSX",
    "MODE_MASK",
    "OP_MASK",
    "PSEUDO_BTF_ID",
    "PSEUDO_CALL",
    "PSEUDO_FUNC",
    "PSEUDO_KFUNC_CALL",
    "PSEUDO_MAP_FD",
    "PSEUDO_MAP_IDX",
    "PSEUDO_MAP_IDX_VALUE",
    "PSEUDO_MAP_VALUE",
    "SIZE_BYTES",
    "SIZE_MASK",
    "SRC_X",
    "ST",
    "STX",
]

CLASS_MASK = 0x07
LD = 0x00
LDX = 0x01
ST = 0x02
STX = 0x03
ALU = 0x04
JMP = 0x05
JMP32 = 0x06
ALU64 = 0x07

SRC_X = 0x08  # second operand is a register (else imm)
OP_MASK = 0xF0
SIZE_MASK = 0x18
MODE_MASK = 0xE0

MEM = 0x60
MEMSX = 0x80  # sign-extending load (v6.6)
ATOMIC = 0xC0

SIZE_BYTES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}

LDIMM64 = 0x18
CALL = 0x85
EXIT = 0x95

# src_reg of ldimm64
PSEUDO_MAP_FD = 1
PSEUDO_MAP_VALUE = 2
PSEUDO_BTF_ID = 3
PSEUDO_FUNC = 4
PSEUDO_MAP_IDX = 5
PSEUDO_MAP_IDX_VALUE = 6
# src_reg of call
PSEUDO_CALL = 1
PSEUDO_KFUNC_CALL = 2
