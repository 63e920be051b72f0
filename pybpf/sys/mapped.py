# SPDX-License-Identifier: BSD-2-Clause
"""Files as memory: mapped where the file system allows it, and never holding a descriptor."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref

from pybpf.errors import KernelError, UsageError
from pybpf.sys import syscalls
from pybpf.sys.files import read_file

__all__ = ["map_file"]


def map_file(path: str) -> memoryview | bytes:
    """The contents of a file, read-only: a private mapping, else (a file system that maps nothing,
    an empty file, another system or machine) a copy. Raises OSError where it cannot be read.

    The mapping ends with its last view. It is not the mmap module's, which up to Python 3.12
    keeps a descriptor as long as the mapping. The file must not be cut short meanwhile.
    sysfs maps /sys/kernel/btf since v6.16, privately and read-only.
    """
    size = os.stat(path).st_size
    if size and sys.platform == "linux":
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                address = syscalls.syscall(
                    "mmap", 0, size, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0
                )
            except (KernelError, UsageError):
                pass
            else:
                # Every view of the pages keeps this array alive, and it keeps them mapped.
                pages = (ctypes.c_ubyte * size).from_address(address)
                weakref.finalize(pages, syscalls.syscall, "munmap", address, size).atexit = False
                return memoryview(pages).cast("B").toreadonly()
    return read_file(path)
