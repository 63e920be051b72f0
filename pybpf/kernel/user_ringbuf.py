# SPDX-License-Identifier: BSD-2-Clause
"""Write a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF, 6.1): records that programs drain.

The layout is in ``pybpf.kernel.ring``, turned round: the producer's position is ours, the
consumer's is the kernel's.
"""

from __future__ import annotations

import mmap
import select
import struct
import sys

from pybpf.errors import UsageError
from pybpf.kernel import layout as _layout
from pybpf.kernel.ring import Ring
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.kernel.map import Map

__all__ = ["UserRingBuffer"]

_HEADER = abi.BPF_RINGBUF_HDR_SZ


class UserRingBuffer(Ring):
    """The writer of one user ring buffer. The map stays the caller's and must stay open.

    There may be one writer of a map at a time: the position is read once and kept here.
    layout: of a record; ``write`` then takes Python values, else bytes.
    A program reads with bpf_user_ringbuf_drain, whenever it runs: nothing wakes it.
    """

    __slots__ = ()
    # Edge-triggered: the kernel calls the ring writable as soon as it has any room.
    _EVENTS = select.EPOLLOUT | select.EPOLLET
    _WRITES = True

    def __init__(self, ring: Map, layout: Any = None) -> None:
        super().__init__(ring, abi.BPF_MAP_TYPE_USER_RINGBUF, "user ring buffer", layout)

    def write(self, record: Any, timeout: float | None = 0) -> bool:
        """Put one record in; False if there is no room, after ``timeout`` seconds of waiting for
        it (None: for ever; a program must drain with a wake-up meanwhile).

        Raises UsageError for a record that is larger than the ring, or no bytes.
        """
        if self._layout is not None:
            data = _layout.encode(self._layout, record, sys.byteorder)
        elif isinstance(record, (bytes, bytearray, memoryview)):
            data = bytes(record)
        else:
            raise UsageError(
                f"a record is bytes, not {type(record).__name__}, without a layout",
                map=self._map.name,
            )
        total = (len(data) + _HEADER + 7) // 8 * 8
        if total > self._size:
            raise UsageError(
                f"a record of {len(data)} bytes does not fit into a ring of {self._size}",
                map=self._map.name,
            )
        while total > self.free:
            if timeout == 0 or not self._wait(timeout):
                return False
        page = mmap.PAGESIZE
        with memoryview(self._producer) as whole, whole.cast("Q") as words:
            position = words[0]
            start = page + position % self._size
            # The mapping goes on with the ring's start, so a record never breaks.
            whole[start + _HEADER : start + _HEADER + len(data)] = data
            struct.pack_into("=II", whole, start, len(data), 0)
            self._fence()  # the data must be there before the position says so
            words[0] = position + total
        self.records += 1
        return True

    @property
    def free(self) -> int:
        """Bytes of room; a record takes 8 more than its data, rounded up to 8."""
        return self._size - self.pending
