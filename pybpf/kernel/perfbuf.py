# SPDX-License-Identifier: BSD-2-Clause
"""Read a BPF perf buffer: what programs write with bpf_perf_event_output (4.4).

The map (BPF_MAP_TYPE_PERF_EVENT_ARRAY) holds one perf event for each CPU; each event has a ring
of its own that is mapped here: a control page with the kernel's position (data_head) and ours
(data_tail), then the data, in which a record may break at the end and go on at the start
(include/uapi/linux/perf_event.h: struct perf_event_mmap_page, enum perf_event_type).
"""

from __future__ import annotations

import mmap
import os
import select
import sys

from pybpf.errors import FormatError, KernelError, UsageError
from pybpf.kernel import layout as _layout
from pybpf.kernel.cpus import online_cpus
from pybpf.sys import abi, bpf, layouts, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self

    from pybpf.kernel.map import Map

__all__ = ["PerfBuffer"]

_HEAD, _TAIL = 1024 // 8, 1032 // 8  # data_head and data_tail in struct perf_event_mmap_page
_LOST, _SAMPLE = 2, 9  # PERF_RECORD_LOST, PERF_RECORD_SAMPLE
_RAW = 1 << 10  # PERF_SAMPLE_RAW
_ENABLE = 0x2400  # PERF_EVENT_IOC_ENABLE


class _Ring:
    """The ring of one CPU."""

    __slots__ = ("cpu", "fd", "view")

    def __init__(self, cpu: int, fd: int, view: mmap.mmap) -> None:
        self.cpu = cpu
        self.fd = fd
        self.view = view


class PerfBuffer:
    """The reader of one perf event array. The map stays the caller's and must stay open; its
    elements are set here and taken out again by ``close``.

    pages: size of each CPU's ring, a power of two of memory pages. wakeup: records after which a
    waiting reader is woken. layout: of a record; ``read`` and iteration then give Python values,
    else bytes. The kernel pads a record so that it ends at a multiple of 8 bytes less 4: bytes
    may have up to 7 zeros or other rests behind what the program wrote.

    ``lost`` counts the records for which a ring had no room. Order holds within a CPU only.
    Needs CAP_PERFMON, or kernel.perf_event_paranoid below 1. CPUs that come online later are not
    read.
    """

    __slots__ = (
        "_barrier", "_epoll", "_layout", "_map", "_rings", "_size", "lost", "records",
    )  # fmt: skip

    def __init__(self, events: Map, layout: Any = None, *, pages: int = 8, wakeup: int = 1) -> None:
        if events.type != abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY:
            raise UsageError("a perf event array is needed", map=events.name)
        if pages < 1 or pages & pages - 1 or wakeup < 1:
            raise UsageError(f"{pages} pages: a power of two is needed, and wakeup at least 1")
        self._map = events
        self._layout = layout
        self._size = pages * mmap.PAGESIZE
        self._rings: list[_Ring] = []
        self.records = 0
        self.lost = 0
        # As in RingBuffer: aarch64 reorders loads.
        self._barrier: Any = None
        if os.uname().machine != "x86_64":
            from _thread import allocate_lock

            self._barrier = allocate_lock()
        self._epoll = select.epoll()
        try:
            for cpu in online_cpus():
                if cpu < events.max_entries:
                    self._open(cpu, wakeup)
        except BaseException:
            self.close()
            raise

    def _open(self, cpu: int, wakeup: int) -> None:
        attr = bpf.pack(
            layouts.ATTR_PERF_EVENT,
            layouts.SIZE_PERF_EVENT,
            {
                "type": abi.PERF_TYPE_SOFTWARE,
                "size": 112,
                "config": abi.PERF_COUNT_SW_BPF_OUTPUT,
                "sample_period": 1,
                "sample_type": _RAW,
                "wakeup_events": wakeup,
            },
        )
        fd = syscalls.perf_event_open(attr, -1, cpu)
        try:
            try:
                view = mmap.mmap(fd, mmap.PAGESIZE + self._size, mmap.MAP_SHARED)
            except OSError as error:
                raise syscalls.fail("mmap", error.errno or 12, cpu=cpu) from None
            try:
                syscalls.ioctl(fd, _ENABLE)
                # A bare update: the map's layout, if any, says nothing on fds.
                key = cpu.to_bytes(4, sys.byteorder)
                bpf.map_update(self._map.fileno(), key, fd.to_bytes(4, sys.byteorder))
                self._rings.append(_Ring(cpu, fd, view))
            except BaseException:
                view.close()
                raise
        except BaseException as error:
            os.close(fd)
            if isinstance(error, KernelError):
                raise error.at(map=self._map.name, cpu=cpu)  # noqa: B904
            raise
        self._epoll.register(fd, select.EPOLLIN)

    # --- reading ------------------------------------------------------------------------------

    def consume(
        self, callback: Callable[[int, memoryview], object], *, limit: int | None = None
    ) -> int:
        """Hand each waiting record to ``callback(cpu, record)``, without waiting; the number of
        records handed over.

        The memoryview is valid during the call only. An exception of the callback ends the loop
        after the record it was given has been consumed. limit: at most so many records.
        """
        self._check_open()
        taken = 0
        for ring in self._rings:
            if limit is not None and taken >= limit:
                break
            taken += self._consume(ring, callback, None if limit is None else limit - taken)
        return taken

    def _consume(
        self, ring: _Ring, callback: Callable[[int, memoryview], object], limit: int | None
    ) -> int:
        taken = 0
        with memoryview(ring.view) as whole, whole.cast("Q") as words:
            head, tail = words[_HEAD], words[_TAIL]
            if self._barrier is not None:
                self._barrier.acquire()
                self._barrier.release()
            try:
                while tail < head and (limit is None or taken < limit):
                    with self._part(whole, tail, 8) as header:
                        kind = int.from_bytes(header[:4], sys.byteorder)
                        length = int.from_bytes(header[6:8], sys.byteorder)
                    if length < 8 or length > head - tail:
                        raise FormatError(
                            f"a record at {tail} claims {length} bytes", map=self._map.name
                        )
                    start, tail = tail, tail + length
                    if kind == _LOST:  # struct { header; u64 id; u64 lost; }
                        with self._part(whole, start + 16, 8) as number:
                            self.lost += int.from_bytes(number, sys.byteorder)
                    elif kind == _SAMPLE:  # struct { header; u32 size; char data[size]; }
                        with self._part(whole, start + 8, 4) as number:
                            size = int.from_bytes(number, sys.byteorder)
                        if size + 12 > length:
                            raise FormatError(
                                f"a record at {start} claims {size} of {length} bytes",
                                map=self._map.name,
                            )
                        taken += 1
                        self.records += 1
                        with self._part(whole, start + 12, size) as record:
                            callback(ring.cpu, record)
            finally:
                # Only now may the kernel use the room again.
                words[_TAIL] = tail
        return taken

    def _part(self, whole: memoryview, at: int, size: int) -> memoryview:
        """Bytes of the ring at a position; copied where they break at its end."""
        start = at % self._size
        first = mmap.PAGESIZE + start
        if start + size <= self._size:
            return whole[first : first + size]
        rest = start + size - self._size
        end = mmap.PAGESIZE
        return memoryview(bytes(whole[first : end + self._size]) + bytes(whole[end : end + rest]))

    def read(self, limit: int | None = None) -> list[Any]:
        """The records that wait, without waiting for more: decoded, or bytes."""
        out: list[Any] = []
        layout = self._layout
        if layout is None:
            self.consume(lambda _, record: out.append(bytes(record)), limit=limit)
        else:
            self.consume(
                lambda _, record: out.append(_layout.decode(layout, record, 0, sys.byteorder)),
                limit=limit,
            )
        return out

    def poll(self, timeout: float | None = None) -> bool:
        """Wait until there may be a record; False after ``timeout`` seconds (None: for ever)."""
        return bool(self.pending or self._epoll.poll(timeout))

    def wait(self, timeout: float | None = None, limit: int | None = None) -> list[Any]:
        """``poll``, then ``read``."""
        return self.read(limit) if self.poll(timeout) else []

    def __iter__(self) -> Iterator[Any]:
        """Records for ever, waiting for each next one."""
        while True:
            yield from self.wait()

    @property
    def pending(self) -> int:
        """Bytes that wait in all rings, headers included."""
        self._check_open()
        total = 0
        for ring in self._rings:
            with memoryview(ring.view) as whole, whole.cast("Q") as words:
                total += words[_HEAD] - words[_TAIL]
        return total

    def fileno(self) -> int:
        """An epoll fd that is readable when any ring has records, for selectors and asyncio."""
        self._check_open()
        return self._epoll.fileno()

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the events out of the map and the rings out of memory. What else is asked of a
        closed buffer raises UsageError."""
        self._epoll.close()
        while self._rings:
            ring = self._rings.pop()
            ring.view.close()
            try:
                if not self._map.closed:
                    # The map holds the event, so closing the fd alone would not end it.
                    bpf.map_delete(self._map.fileno(), ring.cpu.to_bytes(4, sys.byteorder))
            finally:
                os.close(ring.fd)

    def _check_open(self) -> None:
        if self._epoll.closed:
            raise UsageError("the perf buffer is closed", map=self._map.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
