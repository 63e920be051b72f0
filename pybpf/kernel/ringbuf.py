# SPDX-License-Identifier: BSD-2-Clause
"""Read a BPF ring buffer (BPF_MAP_TYPE_RINGBUF, 5.8); its layout is in ``pybpf.kernel.ring``."""

from __future__ import annotations

import mmap
import select
import sys

from pybpf.errors import FormatError
from pybpf.kernel import layout as _layout
from pybpf.kernel.ring import Ring
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pybpf.kernel.map import Map

__all__ = ["RingBuffer"]

_BUSY = abi.BPF_RINGBUF_BUSY_BIT
_DISCARD = abi.BPF_RINGBUF_DISCARD_BIT
_LENGTH = ~(_BUSY | _DISCARD) & 0xFFFFFFFF
_HEADER = abi.BPF_RINGBUF_HDR_SZ
# ``read`` gives room back to the kernel after so many records.
_STEP = 256


class RingBuffer(Ring):
    """The reader of one ring buffer map. The map stays the caller's and must stay open.

    There is one consumer's position for each map: two readers of the same map share the records
    between them at best, and lose some at worst.

    layout: of a record; ``read`` and iteration then give Python values, else bytes. Records that
    the kernel side could not reserve room for are not counted by the map: the program has to
    (bpf_ringbuf_reserve gives NULL). ``discarded`` counts records the program took back.

    ``read`` is the fastest way: a record costs it some 0.4 us, and ``consume`` some 1 us and what
    its callback takes.
    """

    __slots__ = ("discarded",)
    _EVENTS = select.EPOLLIN

    def __init__(self, ring: Map, layout: Any = None) -> None:
        super().__init__(ring, abi.BPF_MAP_TYPE_RINGBUF, "ring buffer", layout)
        self.discarded = 0

    # --- reading ------------------------------------------------------------------------------

    def consume(
        self, callback: Callable[[memoryview], object], *, limit: int | None = None
    ) -> int:
        """Hand each record that waits now to ``callback`` as a memoryview of its data; the number
        of records handed over. What comes meanwhile is for the next call.

        The memoryview is valid during the call only. An exception of the callback ends the loop
        after the record it was given has been consumed. limit: at most so many records.
        """
        self._check_open()
        taken = 0
        page = mmap.PAGESIZE
        with (
            memoryview(self._consumer) as head,
            head.cast("Q") as consumer,
            memoryview(self._producer) as tail,
            tail.cast("Q") as producer,
            tail.cast("I") as words,
        ):
            # Only what waits now: a program may bring records faster than the callback takes them.
            position, end = consumer[0], producer[0]
            while position < end and (limit is None or taken < limit):
                self._fence()
                start = page + position % self._size
                header = words[start // 4]
                if header & _BUSY:
                    break  # reserved, not yet submitted
                self._fence()
                length = header & _LENGTH
                if length > self._size:
                    raise self._malformed(position, length)
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

    def _malformed(self, position: int, length: int) -> FormatError:
        return FormatError(f"a record at {position} claims {length} bytes", map=self._map.name)

    def read(self, limit: int | None = None) -> list[Any]:
        """The records that wait now, without waiting for more: decoded, or bytes.

        limit: at most so many.
        """
        out = self._copies(limit)
        if self._layout is None:
            return out
        layout, decode, order = self._layout, _layout.decode, sys.byteorder
        return [decode(layout, record, 0, order) for record in out]

    def _copies(self, limit: int | None) -> list[bytes]:
        """Copies of the records that were there when the call began."""
        self._check_open()
        out: list[bytes] = []
        add, data, size, page = out.append, self._producer, self._size, mmap.PAGESIZE
        fenced = self._barrier is not None
        with (
            memoryview(self._consumer) as head,
            head.cast("Q") as consumer,
            memoryview(data) as tail,
            tail.cast("Q") as producer,
            tail.cast("I") as words,
        ):
            position, end = consumer[0], producer[0]
            if limit is None:
                limit = size
            try:
                while position < end and len(out) < limit:
                    if fenced:
                        self._fence()
                    start = page + position % size
                    header = words[start >> 2]
                    if header > size:
                        # A bit of state, or damage; the bits are above every length.
                        if header & _BUSY:
                            break  # reserved, not yet submitted
                        if header & _LENGTH > size:
                            raise self._malformed(position, header & _LENGTH)
                        self.discarded += 1
                        position += (header & _LENGTH) + 15 & -8
                        continue
                    if fenced:
                        self._fence()
                    start += 8
                    add(data[start : start + header])
                    position += header + 15 & -8
                    if not len(out) % _STEP:
                        consumer[0] = position
            finally:
                consumer[0] = position
                self.records += len(out)
        return out

    def poll(self, timeout: float | None = None) -> bool:
        """Wait until there may be a record; False after ``timeout`` seconds (None: for ever).

        Records submitted with BPF_RB_NO_WAKEUP do not end the wait.
        """
        return bool(self.pending) or self._wait(timeout)

    def wait(self, timeout: float | None = None, limit: int | None = None) -> list[Any]:
        """``poll``, then ``read``."""
        return self.read(limit) if self.poll(timeout) else []

    def __iter__(self) -> Iterator[Any]:
        """Records for ever, waiting for each next one."""
        while True:
            yield from self.wait()
