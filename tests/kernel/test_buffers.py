# SPDX-License-Identifier: BSD-2-Clause
"""Perf buffers, user ring buffers, and asyncio over ring and perf buffers, with real programs."""

from __future__ import annotations

import asyncio
import os
import select
import struct
import time
from collections.abc import Callable

import pytest

import pybpf
from pybpf.errors import UsageError
from pybpf.kernel import aio
from pybpf.kernel.cpus import possible_cpus
from pybpf.kernel.map import create
from pybpf.kernel.perfbuf import PerfBuffer
from pybpf.kernel.ringbuf import RingBuffer
from pybpf.kernel.user_ringbuf import UserRingBuffer
from pybpf.plan.live import Object
from pybpf.plan.run import run
from pybpf.sys import abi
from tests.kernel.attaching import getpriority, only
from tests.kernel.helpers import HASH
from tests.kernel.test_ringbuf import output, send, the_plan

pytestmark = pytest.mark.kernel


def load(program: str) -> Object:
    return pybpf.load(only(program), export=("struct number_event",))


def event(number: int) -> dict[str, int]:
    return {"number": number, "first": 1, "second": 2}


def test_a_perf_buffer(prefix: str) -> None:
    with load("perf_output") as obj:
        layout = obj.layouts["struct number_event"]
        with PerfBuffer(obj.maps["events"], layout) as buffer:
            obj.attach()
            for _ in range(3):
                getpriority()
            assert buffer.pending > 0
            found = sorted(buffer.wait(5), key=lambda e: int(e["number"]))
            assert found == [event(8), event(9), event(10)]
            assert buffer.wait(0.05) == []
            assert buffer.records == 3
            assert buffer.lost == 0
            getpriority()
            assert buffer.consume(lambda cpu, record: None, limit=1) == 1
        # After closing, the program has nowhere to write to, and nothing breaks.
        getpriority()
        with PerfBuffer(obj.maps["events"]) as buffer:
            getpriority()
            (raw,) = buffer.wait(5)
            assert raw[:16] == struct.pack("=QII", 13, 1, 2)


def test_a_full_perf_buffer_counts_and_goes_on(prefix: str) -> None:
    """One page: some hundred records of 32 bytes go round the end again and again."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        with load("perf_output") as obj:
            layout = obj.layouts["struct number_event"]
            with PerfBuffer(obj.maps["events"], layout, pages=1) as buffer:
                obj.attach()
                for _ in range(300):
                    getpriority()
                kept = buffer.read()
                assert 50 < len(kept) < 200
                assert [e["number"] for e in kept] == list(range(8, 8 + len(kept)))
                getpriority()  # the kernel tells of the loss with the next record that fits
                buffer.read()
                assert buffer.lost == 300 - len(kept)
                numbers = []
                for _ in range(500):  # over the ring's end, where records break
                    getpriority()
                    numbers += [e["number"] for e in buffer.read()]
                assert numbers == list(range(309, 809))
    finally:
        os.sched_setaffinity(0, affinity)


def test_wrong_perf_buffers(prefix: str) -> None:
    with create(HASH, 4, 4, 1, name=f"{prefix}_h") as m, pytest.raises(UsageError):
        PerfBuffer(m)
    with load("perf_output") as obj, pytest.raises(UsageError, match="power of two"):
        PerfBuffer(obj.maps["events"], pages=3)


def test_a_user_ring_buffer(prefix: str) -> None:
    with load("drain") as obj:
        layout = obj.layouts["struct number_event"]
        with UserRingBuffer(obj.maps["from_user"], layout) as ring:
            obj.attach()
            for number in (5, 6, 7):
                assert ring.write({"number": number})
            assert ring.pending == 3 * 24
            getpriority()
            assert obj.vars["seen"] == 18
            assert obj.vars["count"] == 3
            assert ring.pending == 0
            written = 0
            while ring.write({"number": 1}):
                written += 1
            assert written == 4096 // 24
            start = time.monotonic()
            assert not ring.write({"number": 1}, timeout=0.05)
            assert time.monotonic() - start > 0.04
            getpriority()
            assert obj.vars["seen"] == 18 + written
            for _ in range(1000):  # over the end of the ring
                assert ring.write({"number": 2})
                getpriority()
            assert obj.vars["seen"] == 18 + written + 2000
            assert obj.vars["count"] == 3 + written + 1000
        with UserRingBuffer(obj.maps["from_user"]) as ring:
            with pytest.raises(UsageError, match="does not fit"):
                ring.write(bytes(4096))
            with pytest.raises(UsageError):
                RingBuffer(obj.maps["from_user"])
            for what in (5, "text"):
                with pytest.raises(UsageError, match="a record is bytes"):
                    ring.write(what)
            assert ring.write(bytes([1]) + bytes(15))
            getpriority()
            assert obj.vars["count"] == 4 + written + 1000


def test_asyncio_with_a_ring_buffer(prefix: str) -> None:
    with run(the_plan(prefix, ("o", output(8)))) as obj:
        program = obj.programs[f"{prefix}_o"]

        async def main(ring: RingBuffer) -> list[bytes]:
            assert await aio.wait(ring, 0.05) == []
            loop = asyncio.get_running_loop()
            for i in range(3):
                loop.call_later(0.02 * (i + 1), send, program, i)
            found = []
            async for record in aio.records(ring):
                found.append(record)
                if len(found) == 3:
                    break
            return found

        with RingBuffer(obj.maps[f"{prefix}_r"]) as ring:
            found = asyncio.run(main(ring))
        assert found == [bytes([i]) + bytes(7) for i in range(3)]


def test_asyncio_and_epoll_with_a_perf_buffer(prefix: str) -> None:
    with load("perf_output") as obj:
        layout = obj.layouts["struct number_event"]

        async def main(buffer: PerfBuffer) -> list[object]:
            asyncio.get_running_loop().call_later(0.05, getpriority)
            return await aio.wait(buffer, 120)

        with PerfBuffer(obj.maps["events"], layout) as buffer, select.epoll() as poller:
            obj.attach()
            poller.register(buffer.fileno(), select.EPOLLIN)
            assert poller.poll(0.01) == []
            assert asyncio.run(main(buffer)) == [event(8)]
            getpriority()
            assert poller.poll(120) == [(buffer.fileno(), select.EPOLLIN)]
            assert buffer.read() == [event(9)]
            assert poller.poll(0.01) == []


def test_what_is_closed_says_so(prefix: str) -> None:
    with create(abi.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, name=f"{prefix}_r") as m:
        ring = RingBuffer(m)
        ring.close()
        ring.close()
        acts: list[Callable[[], object]] = [
            ring.read, lambda: ring.pending, lambda: ring.poll(0), lambda: ring.wait(0),
            lambda: ring.consume(print),
        ]  # fmt: skip
        for act in acts:
            with pytest.raises(UsageError, match=f"map {prefix}_r: the ring buffer is closed"):
                act()
    with create(abi.BPF_MAP_TYPE_USER_RINGBUF, 0, 0, 4096, name=f"{prefix}_u") as m:
        user = UserRingBuffer(m)
        user.close()
        with pytest.raises(UsageError, match="is closed"):
            user.write(b"x")
    with create(abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, possible_cpus(), name=f"{prefix}_p") as m:
        perf = PerfBuffer(m)
        perf.close()
        perf.close()
        acts = [perf.read, lambda: perf.pending, lambda: perf.poll(0), perf.fileno,
                lambda: perf.consume(print)]  # fmt: skip
        for act in acts:
            with pytest.raises(UsageError, match="the perf buffer is closed"):
                act()
