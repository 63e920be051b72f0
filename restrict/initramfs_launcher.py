# SPDX-License-Identifier: BSD-2-Clause
"""The program that the kernel starts: it executes the interpreter through its own loader.

The interpreter in an initramfs lies in a folder of its own, because another generator's initramfs
may have another libc under the same names. The path of the loader is in the interpreter's ELF
header, and where the loader looks for libraries is in the loader: so the loader must be told, by
its arguments. A script cannot do that (one argument only, and the script's interpreter would be
the loader), so this is a static program of some dozen instructions:

    execve(WORDS[0], [*WORDS, *argv[1:]], envp); write(2, MESSAGE); exit_group(127)

Nothing but these bytes and strings is in it, so it can be read with `objdump -d` and `strings`.
Sources: ELF-64, the kernel's process start (argc, argv and envp on the stack), ld.so(8).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from restrict.errors import RestrictError

__all__ = ["MACHINES", "launcher"]

EM_X86_64, EM_AARCH64 = 62, 183
MACHINES = {EM_X86_64: "x86-64", EM_AARCH64: "aarch64"}

_BASE = 0x400000
_EHDR, _PHDR = 64, 56


def _x86_64(address: int, words: Sequence[int], message: tuple[int, int]) -> bytes:
    """Machine code at ``address``; words, message: addresses of the strings (message: its length).

    The new argv grows downwards from where argc and argv[0] are, so that argv[1:] follow it.
    """

    def lea_rax(target: int) -> bytes:  # lea rax, [rip + displacement]
        return b"\x48\x8d\x05" + struct.pack("<i", target - (address + len(code) + 7))

    code = bytearray()
    code += b"\x48\x8b\x0c\x24"  # mov rcx, [rsp]: argc
    code += b"\x48\x8d\x54\xcc\x10"  # lea rdx, [rsp + rcx*8 + 16]: envp
    last, *rest = reversed(words)
    code += lea_rax(last)
    code += b"\x48\x89\x44\x24\x08"  # mov [rsp + 8], rax: over argv[0]
    code += lea_rax(rest[0])
    code += b"\x48\x89\x04\x24"  # mov [rsp], rax: over argc
    for word in rest[1:]:
        code += lea_rax(word)
        code += b"\x50"  # push rax
    code += b"\x48\x8b\x3c\x24"  # mov rdi, [rsp]: the file is argv[0]
    code += b"\x48\x89\xe6"  # mov rsi, rsp
    code += b"\xb8" + struct.pack("<I", 59) + b"\x0f\x05"  # execve
    code += lea_rax(message[0])
    code += b"\x48\x89\xc6"  # mov rsi, rax
    code += b"\xba" + struct.pack("<I", message[1])  # mov edx, length
    code += b"\xbf" + struct.pack("<I", 2)  # mov edi, 2
    code += b"\xb8" + struct.pack("<I", 1) + b"\x0f\x05"  # write
    code += b"\xbf" + struct.pack("<I", 127)  # mov edi, 127
    code += b"\xb8" + struct.pack("<I", 231) + b"\x0f\x05"  # exit_group
    return bytes(code)


def _aarch64(address: int, words: Sequence[int], message: tuple[int, int]) -> bytes:
    """As ``_x86_64``. The argument vector is built through x1: sp must stay aligned to 16."""
    code: list[int] = []

    def adr_x0(target: int) -> int:  # adr x0, target
        offset = target - (address + 4 * len(code))
        return 0x10000000 | (offset & 3) << 29 | (offset >> 2 & 0x7FFFF) << 5

    def movz(register: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register

    code.append(0xF94003E3)  # ldr x3, [sp]: argc
    code.append(0x8B236FE2)  # add x2, sp, x3, uxtx #3
    code.append(0x91004042)  # add x2, x2, #16: envp
    code.append(0x910043E1)  # add x1, sp, #16
    for word in reversed(words):
        code.append(adr_x0(word))
        code.append(0xF81F8C20)  # str x0, [x1, #-8]!
    code.append(movz(8, 221))  # execve; x0 is the first word still
    code.append(0xD4000001)  # svc #0
    code.append(adr_x0(message[0]))
    code.append(0xAA0003E1)  # mov x1, x0
    code.append(movz(2, message[1]))
    code.append(movz(0, 2))
    code.append(movz(8, 64))  # write
    code.append(0xD4000001)
    code.append(movz(0, 127))
    code.append(movz(8, 94))  # exit_group
    code.append(0xD4000001)
    return struct.pack(f"<{len(code)}I", *code)


def launcher(machine: int, words: Sequence[str]) -> bytes:
    """A static ELF program that executes ``words``, with its own arguments behind them.

    machine: e_machine of the interpreter. Raises RestrictError for a machine it is not written
    for.
    """
    if machine not in MACHINES:
        raise RestrictError(
            f"there is no start program for machine {machine}.",
            hint=f"It is written for {', '.join(MACHINES.values())}.",
        )
    if len(words) < 2:
        raise RestrictError("a start program needs a loader and a program.")
    encode = _x86_64 if machine == EM_X86_64 else _aarch64
    message = f"restrict: {words[0]} cannot be executed\n".encode()
    strings = bytearray()
    places = []
    for word in words:
        places.append(len(strings))
        strings += word.encode() + b"\0"
    places.append(len(strings))
    strings += message
    start = _BASE + _EHDR + 2 * _PHDR
    # The code's length does not depend on where the strings are: encode it twice.
    size = len(encode(start, [start] * len(words), (start, len(message))))
    base = start + size
    code = encode(start, [base + place for place in places[:-1]], (base + places[-1], len(message)))
    total = _EHDR + 2 * _PHDR + len(code) + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, machine, 1, start, _EHDR, 0, 0, _EHDR, _PHDR, 2, 0, 0, 0,
    )  # fmt: skip
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, total, total, 0x10000)  # PT_LOAD rx
    segments += struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # PT_GNU_STACK rw
    return header + segments + code + bytes(strings)
