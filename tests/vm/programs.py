# SPDX-License-Identifier: BSD-2-Clause
"""Programs and shared objects for the probes, put together byte by byte.

Small enough to be read, static, and made on the host and in the guest alike: no compiler is
needed.  Layouts: elf(5), System V ABI, AMD64 supplement.
"""

from __future__ import annotations

import struct

__all__ = ["EXIT_STATUS", "program", "script", "shared_object"]

EXIT_STATUS = 42
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")
_SYM = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_GNU_STACK = 1, 2, 3, 0x6474E551
_X, _W, _R = 1, 2, 4
_BASE = 0x400000
_PAGE = 0x1000


def _header(kind: int, entry: int, segments: int) -> bytes:
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return _EHDR.pack(identity, kind, 62, 1, entry, 64, 0, 0, 64, 56, segments, 0, 0, 0)


def program(
    status: int = EXIT_STATUS,
    *,
    executable_stack: bool = False,
    interpreter: str = "",
    code: bytes = b"",
) -> bytes:
    """A static ELF program that exits with *status*.

    *executable_stack* asks for one with PT_GNU_STACK; *interpreter* names a PT_INTERP, which
    the kernel then loads and starts in the program's place; *code* is run instead of exit.
    """
    if not code:
        code = bytes([0xBF]) + struct.pack("<I", status)  # mov edi, status
        code += bytes([0xB8]) + struct.pack("<I", 60)  # mov eax, exit
        code += b"\x0f\x05"  # syscall
    count = 3 if interpreter else 2
    offset = 64 + 56 * count
    name = interpreter.encode() + b"\0" if interpreter else b""
    entry = _BASE + offset + len(name)
    size = offset + len(name) + len(code)
    headers = b""
    if interpreter:
        headers += _PHDR.pack(
            _PT_INTERP, _R, offset, _BASE + offset, _BASE + offset, len(name), len(name), 1
        )
    headers += _PHDR.pack(_PT_LOAD, _R | _X, 0, _BASE, _BASE, size, size, _PAGE)
    flags = _R | _W | (_X if executable_stack else 0)
    headers += _PHDR.pack(_PT_GNU_STACK, flags, 0, 0, 0, 0, 0, 16)
    return _header(2, entry, count) + headers + name + code


def shared_object(value: int = EXIT_STATUS, *, executable_stack: bool = False) -> bytes:
    """A shared object with one function, ``answer``, that returns *value*.

    With *executable_stack* it asks for one, as does every shared object without PT_GNU_STACK:
    glibc then makes the stack executable by mprotect(2).
    """
    strings = b"\0answer\0libanswer.so\0"
    code = bytes([0xB8]) + struct.pack("<I", value) + b"\xc3"  # mov eax, value; ret
    # Everything but the code and the dynamic section: read-only, in the first page.
    offset = 64 + 56 * 5
    symbols = _SYM.pack(0, 0, 0, 0, 0, 0)
    hash_table = struct.pack("<6I", 1, 2, 1, 0, 0, 0)  # nbucket, nchain, bucket, chain
    symbol_offset = offset
    string_offset = symbol_offset + 2 * _SYM.size
    hash_offset = (string_offset + len(strings) + 7) & ~7
    symbols += _SYM.pack(1, 0x12, 0, 1, _PAGE, len(code))  # GLOBAL FUNC
    first = symbols + strings
    first += bytes(hash_offset - offset - len(first)) + hash_table
    dynamic = b"".join(
        _DYN.pack(tag, number)
        for tag, number in (
            (14, 8),  # DT_SONAME
            (4, hash_offset),  # DT_HASH
            (5, string_offset),  # DT_STRTAB
            (6, symbol_offset),  # DT_SYMTAB
            (10, len(strings)),  # DT_STRSZ
            (11, _SYM.size),  # DT_SYMENT
            (0, 0),
        )
    )
    end = hash_offset + len(hash_table)
    headers = (
        _PHDR.pack(_PT_LOAD, _R, 0, 0, 0, end, end, _PAGE)
        + _PHDR.pack(_PT_LOAD, _R | _X, _PAGE, _PAGE, _PAGE, len(code), len(code), _PAGE)
        + _PHDR.pack(
            _PT_LOAD, _R | _W, 2 * _PAGE, 2 * _PAGE, 2 * _PAGE, len(dynamic), len(dynamic), _PAGE
        )
        + _PHDR.pack(
            _PT_DYNAMIC, _R | _W, 2 * _PAGE, 2 * _PAGE, 2 * _PAGE, len(dynamic), len(dynamic), 8
        )
        + _PHDR.pack(_PT_GNU_STACK, _R | _W | (_X if executable_stack else 0), 0, 0, 0, 0, 0, 16)
    )
    body = _header(3, 0, 5) + headers + first
    body += bytes(_PAGE - len(body)) + code
    return body + bytes(2 * _PAGE - len(body)) + dynamic


def script(interpreter: str, text: str = "") -> bytes:
    """A script with a shebang line."""
    return f"#!{interpreter}\n{text}\n".encode()
