# SPDX-License-Identifier: BSD-2-Clause
"""One request at a time through io_uring: system calls that do not come by their own entry."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from pybpf.sys.syscalls import syscall

__all__ = ["LINKAT", "MKDIRAT", "OPENAT", "SYMLINKAT", "submit"]

# enum io_uring_op (include/uapi/linux/io_uring.h)
OPENAT, MKDIRAT, SYMLINKAT, LINKAT = 18, 37, 38, 39
_ENTRIES = 4
_SQES = 0x10000000
_GETEVENTS = 1
_AT_FDCWD = -100


def submit(
    opcode: int, path: str, *, other: str | None = None, length: int = 0, flags: int = 0
) -> int:
    """Submit one request and wait for it; gives its result. OSError if that is an errno.

    path: the request's addr; other: its addr2; length: mode, or the other directory.
    """
    parameters = bytearray(120)
    ring = syscall("io_uring_setup", _ENTRIES, parameters)
    try:
        sq_tail, sq_mask, sq_array = struct.unpack_from("=4xII12xI", parameters, 40)
        cq_mask, cqes = struct.unpack_from("=8xI8xI", parameters, 80)
        cq_entries = struct.unpack_from("=I", parameters, 4)[0]
        size = max(sq_array + 4 * _ENTRIES, cqes + 16 * cq_entries)
        rings = mmap.mmap(ring, size, mmap.MAP_SHARED)
        entries = mmap.mmap(ring, 64 * _ENTRIES, mmap.MAP_SHARED, offset=_SQES)
        texts = [ctypes.create_string_buffer(os.fsencode(text or "")) for text in (path, other)]
        addresses = [ctypes.addressof(text) for text in texts]
        struct.pack_into(
            "=BBHiQQIIQ", entries, 0,
            opcode, 0, 0, _AT_FDCWD, addresses[1] if other is not None else 0, addresses[0],
            length & 0xFFFFFFFF, flags, 7,
        )  # fmt: skip
        (tail,) = struct.unpack_from("=I", rings, sq_tail)
        (mask,) = struct.unpack_from("=I", rings, sq_mask)
        struct.pack_into("=I", rings, sq_array + 4 * (tail & mask), 0)
        struct.pack_into("=I", rings, sq_tail, tail + 1)
        syscall("io_uring_enter", ring, 1, 1, _GETEVENTS, None, 0)
        (mask,) = struct.unpack_from("=I", rings, cq_mask)
        (head,) = struct.unpack_from("=I", rings, struct.unpack_from("=I", parameters, 80)[0])
        data, result = struct.unpack_from("=Qi", rings, cqes + 16 * (head & mask))
        assert data == 7
        rings.close()
        entries.close()
    finally:
        os.close(ring)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return int(result)
