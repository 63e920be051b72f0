# SPDX-License-Identifier: BSD-2-Clause
"""Arenas (BPF_MAP_TYPE_ARENA, 6.9): memory that programs and this process share, pointers too."""

from __future__ import annotations

import ctypes
import mmap
import sys

from pybpf.errors import PlanError, UsageError
from pybpf.sys import abi, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pybpf.kernel.map import Map

__all__ = ["Arena", "fill", "map_fd", "unmap"]

_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
# MAP_SHARED; MAP_FIXED_NOREPLACE (4.17) takes the address that map_extra asks for, or fails
# rather than to map over something.
_FIXED = 0x100000


def map_fd(fd: int, pages: int, address: int = 0) -> tuple[int, int]:
    """Map the arena in ``fd``: (address, bytes). address: the map's map_extra, 0: the kernel's
    choice. Programs of an arena can be loaded only once it has an address: map_extra, or this.
    Raises KernelError."""
    size = pages * mmap.PAGESIZE
    flags = mmap.MAP_SHARED | (_FIXED if address else 0)
    found = syscalls.raw(syscalls.number("mmap"), address, size, _READ_WRITE, flags, fd, 0)
    # Addresses of user space are positive as longs; errors lie above -4096.
    if found < 0:
        raise syscalls.fail("mmap", -found, address=hex(address) if address else None)
    return found, size


def unmap(address: int, size: int) -> None:
    """munmap(2) of what ``map_fd`` gave."""
    syscalls.syscall("munmap", address, size)


def fill(address: int, size: int, entries: tuple[tuple[bytes, bytes | int], ...]) -> None:
    """Write values into a mapped arena; a key is the place as a native u32. Raises PlanError."""
    for key, value in entries:
        place = int.from_bytes(key, sys.byteorder)
        if not isinstance(value, bytes) or place + len(value) > size:
            raise PlanError(f"a value at byte {place} does not fit an arena of {size} bytes")
        ctypes.memmove(address + place, value, len(value))


class Arena:
    """An arena in this process' memory: ``address``, ``size`` in bytes, and ``view``.

    A program's pointers into the arena are addresses of this process: ``offset(pointer)`` is the
    place in ``view``. A page appears when the program allocates it or when it is touched here
    (with BPF_F_SEGV_ON_FAULT touching one that is not there ends the process with SIGSEGV).

    The map stays the caller's. An object that pybpf has loaded maps its arenas itself: give that
    ``address`` (``Object.arenas``), else the arena is mapped here and unmapped by ``close``.
    """

    __slots__ = ("_own", "address", "size", "view")

    def __init__(self, arena: Map, address: int = 0) -> None:
        if arena.type != abi.BPF_MAP_TYPE_ARENA:
            raise UsageError("an arena is needed", map=arena.name)
        self._own = not address
        self.size = arena.max_entries * mmap.PAGESIZE
        self.address = address
        if self._own:
            extra = arena.info()["map_extra"]
            self.address, self.size = map_fd(arena.fileno(), arena.max_entries, extra)
        memory = (ctypes.c_char * self.size).from_address(self.address)
        self.view = memoryview(memory).cast("B")

    def offset(self, pointer: int) -> int:
        """Place in ``view`` of a pointer that a program has stored; its lower half counts, as it
        does for programs. Raises UsageError outside the arena."""
        place = (pointer - self.address) & 0xFFFFFFFF
        if place >= self.size:
            raise UsageError(f"{pointer:#x} does not point into the arena at {self.address:#x}")
        return place

    def close(self) -> None:
        """Give the view up, and unmap what was mapped here. Pointers and copies of the view that
        are still held must not be used afterwards."""
        address, self.address = self.address, 0
        if address:
            self.view.release()
            if self._own:
                unmap(address, self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
