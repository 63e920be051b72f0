# SPDX-License-Identifier: BSD-2-Clause
"""Write a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF, 6.1): records that programs drain.

Layout (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst turned round): one page with the
consumer's position, which only the kernel writes; one page with the producer's position, ours;
the data, mapped twice in a row. A record is a header of 8 bytes (length, with a busy and a
discard bit) and the data, padded to 8 bytes.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import sys

from pybpf.errors import UsageError
from pybpf.kernel import layout as _layout
from pybpf.sys import abi
from pybpf.sys.syscalls import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from pybpf.kernel.map import Map

__all__ = ["UserRingBuffer"]

_HEADER = abi.BPF_RINGBUF_HDR_SZ


class UserRingBuffer:
    """The writer of one user ring buffer. The map stays the caller's and must stay open.

    There may be one writer of a map at a time: the position is read once and kept here.
    layout: of a record; ``write`` then takes Python values, else bytes.
    A program reads with bpf_user_ringbuf_drain, whenever it runs: nothing wakes it.
    """

    __slots__ = (
        "_barrier", "_consumer", "_epoll", "_layout", "_map", "_producer", "_size", "records",
    )  # fmt: skip

    def __init__(self, ring: Map, layout: Any = None) -> None:
        if ring.type != abi.BPF_MAP_TYPE_USER_RINGBUF:
            raise UsageError("a user ring buffer map is needed", map=ring.name)
        self._map = ring
        self._layout = layout
        self._size = ring.max_entries
        self.records = 0
        self._epoll: select.epoll | None = None
        # The data must be there before the position says so: x86-64 keeps the order of stores.
        self._barrier: Any = None
        if os.uname().machine != "x86_64":
            from _thread import allocate_lock

            self._barrier = allocate_lock()
        page = mmap.PAGESIZE
        try:
            consumer = mmap.mmap(ring.fileno(), page, mmap.MAP_SHARED, mmap.PROT_READ)
            try:
                producer = mmap.mmap(
                    ring.fileno(), page + 2 * self._size, mmap.MAP_SHARED,
                    mmap.PROT_READ | mmap.PROT_WRITE, offset=page,
                )  # fmt: skip
            except BaseException:
                consumer.close()
                raise
        except OSError as error:
            raise fail("mmap", error.errno or 22, map=ring.name) from None
        self._consumer = consumer
        self._producer = producer

    def write(self, record: Any, timeout: float | None = 0) -> bool:
        """Put one record in; False if there is no room, after ``timeout`` seconds of waiting for
        it (None: for ever; a program must drain with a wake-up meanwhile).

        Raises UsageError for a record that is larger than the ring.
        """
        if self._layout is not None:
            data = _layout.encode(self._layout, record, sys.byteorder)
        else:
            data = bytes(record)
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
            if self._barrier is not None:
                self._barrier.acquire()
                self._barrier.release()
            words[0] = position + total
        self.records += 1
        return True

    def _wait(self, timeout: float | None) -> bool:
        if self._epoll is None:
            self._epoll = select.epoll()
            # Edge-triggered: the kernel calls the ring writable as soon as it has any room.
            self._epoll.register(self._map.fileno(), select.EPOLLOUT | select.EPOLLET)
            self._epoll.poll(0)
        return bool(self._epoll.poll(timeout))

    @property
    def free(self) -> int:
        """Bytes of room; a record takes 8 more than its data, rounded up to 8."""
        return self._size - self.pending

    @property
    def pending(self) -> int:
        """Bytes that no program has drained yet, headers included."""
        with memoryview(self._consumer) as tail, tail.cast("Q") as consumer:
            done = consumer[0]
        with memoryview(self._producer) as head, head.cast("Q") as producer:
            return producer[0] - done

    def fileno(self) -> int:
        """The map's fd: writable for poll(2) when there is room."""
        return self._map.fileno()

    def close(self) -> None:
        """Take the ring out of memory; the map stays open, and what was written stays in it."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._consumer.close()
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
