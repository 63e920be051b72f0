# SPDX-License-Identifier: BSD-2-Clause
"""What the two kinds of ring buffer have in common: mappings, positions, waiting, the end.

Layout (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c): one page with the consumer's
position; one page with the producer's position; the data, mapped twice in a row, so that a record
never breaks. A record is a header of 8 bytes (length with a busy and a discard bit, page offset)
and the data, padded to 8 bytes. Each side may write its own position only.
"""

from __future__ import annotations

import mmap
import os

from pybpf.errors import UsageError
from pybpf.sys.syscalls import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from typing import Any, Self

    from pybpf.kernel.map import Map

__all__ = ["Ring"]


class Ring:
    """One side of one ring. The map stays the caller's and must stay open.

    ``_EVENTS`` of epoll end a wait; ``_WRITES`` tells which side this process is.
    """

    __slots__ = (
        "_barrier", "_consumer", "_epoll", "_layout", "_map", "_producer", "_size", "records",
    )  # fmt: skip
    _EVENTS = 0
    _WRITES = False

    def __init__(self, ring: Map, kind: int, name: str, layout: Any) -> None:
        if ring.type != kind:
            raise UsageError(f"a {name} map is needed", map=ring.name)
        self._map = ring
        self._layout = layout
        self._size = ring.max_entries
        self.records = 0
        self._epoll: select.epoll | None = None
        # Acquiring a lock keeps the CPU from moving loads and stores of a record over those of its
        # header or position (needed on aarch64; x86-64 keeps their order).
        self._barrier: Any = None
        if os.uname().machine != "x86_64":
            from _thread import allocate_lock

            self._barrier = allocate_lock()
        # A store through a cast memoryview is one machine store: the other side, in the kernel,
        # reads the position while we write it.
        self._consumer = self._mapped(mmap.PAGESIZE, 0, not self._WRITES)
        try:
            self._producer = self._mapped(
                mmap.PAGESIZE + 2 * self._size, mmap.PAGESIZE, self._WRITES
            )
        except BaseException:
            self._consumer.close()
            raise

    def _mapped(self, size: int, offset: int, writable: bool) -> mmap.mmap:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            return mmap.mmap(self._map.fileno(), size, mmap.MAP_SHARED, prot, offset=offset)
        except OSError as error:
            raise fail("mmap", error.errno or 22, map=self._map.name) from None

    def _check_open(self) -> None:
        """Raise UsageError once the ring is closed."""
        if self._consumer.closed:
            raise UsageError("the ring buffer is closed", map=self._map.name)

    def _fence(self) -> None:
        if self._barrier is not None:
            self._barrier.acquire()
            self._barrier.release()

    def _wait(self, timeout: float | None) -> bool:
        if self._epoll is None:
            from select import EPOLLET, epoll

            self._epoll = epoll()
            self._epoll.register(self._map.fileno(), self._EVENTS)
            if self._EVENTS & EPOLLET:
                self._epoll.poll(0)  # what is so already is no event
        return bool(self._epoll.poll(timeout))

    @property
    def pending(self) -> int:
        """Bytes between the consumer's and the producer's position, headers included."""
        self._check_open()
        with memoryview(self._consumer) as tail, tail.cast("Q") as consumer:
            done = consumer[0]
        with memoryview(self._producer) as head, head.cast("Q") as producer:
            return producer[0] - done

    @property
    def size(self) -> int:
        """Bytes of data the ring holds."""
        return self._size

    def fileno(self) -> int:
        """The map's fd, for poll(2), epoll(7), selectors."""
        return self._map.fileno()

    def close(self) -> None:
        """Take the ring out of memory; the map stays open, and what is in it stays. What else is
        asked of a closed ring raises UsageError."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._consumer.close()
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
