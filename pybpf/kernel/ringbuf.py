# SPDX-License-Identifier: BSD-2-Clause
"""Read a BPF ring buffer (BPF_MAP_TYPE_RINGBUF, 5.8).

Layout (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c): one page with the consumer's
position, which the reader may write; one page with the producer's position; the data, mapped
twice in a row, so that a record never breaks. A record is a header of 8 bytes (length with a
busy and a discard bit, page offset) and the data, padded to 8 bytes.
"""

from __future__ import annotations

import mmap
import os
import select
import sys

from pybpf.errors import FormatError, UsageError
from pybpf.kernel import layout as _layout
from pybpf.sys import abi
from pybpf.sys.syscalls import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self

    from pybpf.kernel.map import Map

__all__ = ["RingBuffer"]

_BUSY = abi.BPF_RINGBUF_BUSY_BIT
_DISCARD = abi.BPF_RINGBUF_DISCARD_BIT
_LENGTH = ~(_BUSY | _DISCARD) & 0xFFFFFFFF
_HEADER = abi.BPF_RINGBUF_HDR_SZ


class RingBuffer:
    """The reader of one ring buffer map. The map stays the caller's and must stay open.

    There is one consumer's position for each map: two readers of the same map share the records
    between them at best, and lose some at worst.

    layout: of a record; ``read`` and iteration then give Python values, else bytes. Records that
    the kernel side could not reserve room for are not counted by the map: the program has to
    (bpf_ringbuf_reserve gives NULL). ``discarded`` counts records the program took back.
    """

    __slots__ = (
        "_barrier", "_consumer", "_epoll", "_layout", "_map", "_producer", "_size", "discarded",
        "records",
    )  # fmt: skip

    def __init__(self, ring: Map, layout: Any = None) -> None:
        if ring.type != abi.BPF_MAP_TYPE_RINGBUF:
            raise UsageError("a ring buffer map is needed", map=ring.name)
        self._map = ring
        self._layout = layout
        self._size = ring.max_entries
        self.records = 0
        self.discarded = 0
        self._epoll: select.epoll | None = None
        # Acquiring a lock keeps the CPU from reading a record before its header (needed on
        # aarch64, where loads are reordered; x86-64 does not).
        self._barrier: Any = None
        if os.uname().machine != "x86_64":
            from _thread import allocate_lock

            self._barrier = allocate_lock()
        page = mmap.PAGESIZE
        try:
            consumer = mmap.mmap(
                ring.fileno(), page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
            )
            try:
                producer = mmap.mmap(
                    ring.fileno(), page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ,
                    offset=page,
                )  # fmt: skip
            except BaseException:
                consumer.close()
                raise
        except OSError as error:
            raise fail("mmap", error.errno or 22, map=ring.name) from None
        # A store through a cast memoryview is one machine store: the producer, in the kernel,
        # reads the position while we write it.
        self._consumer = consumer
        self._producer = producer

    # --- reading ------------------------------------------------------------------------------

    def _fence(self) -> None:
        if self._barrier is not None:
            self._barrier.acquire()
            self._barrier.release()

    def consume(
        self, callback: Callable[[memoryview], object], *, limit: int | None = None
    ) -> int:
        """Hand each waiting record to ``callback`` as a memoryview of its data, without waiting;
        the number of records handed over.

        The memoryview is valid during the call only. An exception of the callback ends the loop
        after the record it was given has been consumed. limit: at most so many records.
        """
        taken = 0
        page = mmap.PAGESIZE
        with (
            memoryview(self._consumer) as head,
            head.cast("Q") as consumer,
            memoryview(self._producer) as tail,
            tail.cast("Q") as producer,
            tail.cast("I") as words,
        ):
            position = consumer[0]
            while limit is None or taken < limit:
                if position >= producer[0]:
                    break
                self._fence()
                start = page + position % self._size
                header = words[start // 4]
                if header & _BUSY:
                    break  # reserved, not yet submitted
                self._fence()
                length = header & _LENGTH
                if length > self._size:
                    raise FormatError(
                        f"a record at {position} claims {length} bytes", map=self._map.name
                    )
                following = position + (length + _HEADER + 7) // 8 * 8
                if header & _DISCARD:
                    self.discarded += 1
                    consumer[0] = position = following
                    continue
                taken += 1
                self.records += 1
                try:
                    with tail[start + _HEADER : start + _HEADER + length] as record:
                        callback(record)
                finally:
                    # Only now may the kernel use the room again.
                    consumer[0] = position = following
        return taken

    def read(self, limit: int | None = None) -> list[Any]:
        """The records that wait, without waiting for more: decoded, or bytes."""
        out: list[Any] = []
        if self._layout is None:
            self.consume(lambda record: out.append(bytes(record)), limit=limit)
        else:
            layout = self._layout
            self.consume(
                lambda record: out.append(_layout.decode(layout, record, 0, sys.byteorder)),
                limit=limit,
            )
        return out

    def poll(self, timeout: float | None = None) -> bool:
        """Wait until there may be a record; False after ``timeout`` seconds (None: for ever).

        Records submitted with BPF_RB_NO_WAKEUP do not end the wait.
        """
        if self.pending:
            return True
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self._map.fileno(), select.EPOLLIN)
        return bool(self._epoll.poll(timeout))

    def wait(self, timeout: float | None = None, limit: int | None = None) -> list[Any]:
        """``poll``, then ``read``."""
        return self.read(limit) if self.poll(timeout) else []

    def __iter__(self) -> Iterator[Any]:
        """Records for ever, waiting for each next one."""
        while True:
            yield from self.wait()

    @property
    def pending(self) -> int:
        """Bytes between the consumer's and the producer's position, headers included."""
        with memoryview(self._consumer) as head, head.cast("Q") as consumer:
            done = consumer[0]
        with memoryview(self._producer) as tail, tail.cast("Q") as producer:
            return producer[0] - done

    @property
    def size(self) -> int:
        """Bytes of data the ring holds."""
        return self._size

    def fileno(self) -> int:
        """The map's fd, for poll(2), epoll(7), selectors."""
        return self._map.fileno()

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the ring out of memory; the map stays open."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._consumer.close()
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
