# SPDX-License-Identifier: BSD-2-Clause
"""The instruction model: decode, encode, disassemble."""

from __future__ import annotations

from pybpf.asm.disasm import disasm, format_insn, lines
from pybpf.asm.insn import Instruction, decode, encode

__all__ = ["Instruction", "decode", "disasm", "encode", "format_insn", "lines"]
