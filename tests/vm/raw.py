# SPDX-License-Identifier: BSD-2-Clause
"""System calls for the probes, by number: libc adds nothing and hides nothing.

Numbers are those of x86-64, the guest's architecture.  No callback is ever handed to ctypes:
under the policies there is no memory that is writable and executable.
"""

from __future__ import annotations

import ctypes
import os

__all__ = [
    "AT_EMPTY_PATH",
    "AT_EXECVE_CHECK",
    "MAP_ANONYMOUS",
    "MAP_FIXED",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "PAGE",
    "PROT_EXEC",
    "PROT_NONE",
    "PROT_READ",
    "PROT_WRITE",
    "call",
    "execveat",
    "mmap",
    "mprotect",
    "read_memory",
    "write_memory",
]

PAGE = 4096
PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20
AT_EMPTY_PATH = 0x1000
AT_EXECVE_CHECK = 0x10000  # 6.14

_NUMBERS = {
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "shmget": 29, "shmat": 30,
    "shmctl": 31, "shmdt": 67, "ptrace": 101, "personality": 135, "remap_file_pages": 216,
    "memfd_create": 319, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321,
    "execveat": 322, "pkey_mprotect": 329, "pidfd_open": 434, "pidfd_getfd": 438,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: object) -> int:
    """The system call *name*; integers are passed as 64-bit words.

    Raises:
        OSError: it failed.
    """
    words = [
        ctypes.c_ulong(argument & 0xFFFFFFFFFFFFFFFF) if isinstance(argument, int) else argument
        for argument in arguments
    ]
    result = int(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *words))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mmap(length: int, prot: int, flags: int, fd: int = -1, offset: int = 0, at: int = 0) -> int:
    """mmap(2); gives the address."""
    return call("mmap", at, length, prot, flags, fd, offset)


def mprotect(address: int, length: int, prot: int) -> int:
    """mprotect(2)."""
    return call("mprotect", address, length, prot)


def execveat(fd: int, path: str, flags: int, arguments: list[str] | None = None) -> int:
    """execveat(2) with an empty environment; returns only for AT_EXECVE_CHECK."""
    words = [word.encode() for word in (arguments or [path or "program"])]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    envp = (ctypes.c_char_p * 1)(None)
    return call("execveat", fd, path.encode(), argv, envp, flags)


def read_memory(address: int, length: int) -> bytes:
    """Bytes of our own memory."""
    return ctypes.string_at(address, length)


def write_memory(address: int, data: bytes) -> None:
    """Write our own memory; the page must be writable."""
    ctypes.memmove(address, data, len(data))
