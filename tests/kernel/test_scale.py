# SPDX-License-Identifier: BSD-2-Clause
"""Many of everything: programs in an object, updates of a map, events of a ring buffer.

How fast it is, is told (``pytest -s``) and measured by ``tools/bench scale``; no time decides a
test. What decides is that nothing is lost, and that memory stays what it was.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pybpf
from pybpf.kernel.ringbuf import RingBuffer
from pybpf.sys import abi, bpf

pytestmark = pytest.mark.kernel
OBJECTS = Path(__file__).resolve().parent.parent / "objects"
UPDATES = 10_000
EVENTS = 1_000_000


def test_two_hundred_programs() -> None:
    with pybpf.load(OBJECTS / "many.bpf.o") as live:
        assert len(live.programs) == 200
        assert len({program.id for program in live.programs.values()}) == 200
        live.attach()
        assert len(live.links) == 200
        before = list(live.vars["runs"])
        for _ in range(100):
            os.getppid()
        # They count everybody's calls: ours are among them.
        assert all(now - then >= 100 for now, then in zip(live.vars["runs"], before, strict=True))
        live.detach()


def test_ten_thousand_updates_one_by_one_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[int, int] = {}
    real = bpf.call

    def counted(cmd: int, attr: bytearray, **more: Any) -> int:
        calls[cmd] = calls.get(cmd, 0) + 1
        return real(cmd, attr, **more)

    with pybpf.load(OBJECTS / "flood.bpf.o") as live:
        table = live.maps["table"]
        assert (table.type, table.key_size) == (abi.BPF_MAP_TYPE_HASH, 4)
        monkeypatch.setattr(bpf, "call", counted)
        start = time.process_time()
        for number in range(UPDATES):
            table[number] = number
        single = time.process_time() - start
        assert calls == {abi.BPF_MAP_UPDATE_ELEM: UPDATES}
        assert dict(table.items()) == {number: number for number in range(UPDATES)}
        calls.clear()
        start = time.process_time()
        assert table.update_batch((number, number + 1) for number in range(UPDATES)) == UPDATES
        batch = time.process_time() - start
        assert calls == {abi.BPF_MAP_UPDATE_BATCH: 1}
        assert dict(table.items()) == {number: number + 1 for number in range(UPDATES)}
        calls.clear()
        assert table.delete_batch(range(UPDATES)) == UPDATES
        assert sum(calls.values()) == 1
        assert list(table) == []
    print(f"{UPDATES} updates: {single * 1e3:.1f} ms one by one, {batch * 1e3:.1f} ms at once")


def resident() -> int:
    """Bytes of this process that are in memory (/proc/PID/statm: second number, pages)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("way", ["consume", "read"])
def test_a_million_events(way: str) -> None:
    """Every event is there or counted as dropped, in order; memory stays flat."""
    with pybpf.load(OBJECTS / "flood.bpf.o", export=["struct flood_args"]) as live:
        flood, layout = live.programs["flood"], live.layouts["struct flood_args"]

        def send() -> None:
            for _ in range(EVENTS // 5000):
                flood.test_run(ctx={"count": 5000, "size": 64}, layout=layout)

        seen = [0]
        last = [-1]
        ordered = [True]
        unpack = struct.Struct("=QQ").unpack_from

        def one(record: memoryview | bytes) -> None:
            number, size = unpack(record)
            ordered[0] &= last[0] < number and size == len(record) == 64
            last[0] = number
            seen[0] += 1

        with RingBuffer(live.maps["ring"]) as ring:

            def drain() -> None:
                if way == "consume":
                    ring.consume(one)
                else:
                    for record in ring.read():
                        one(record)

            producer = threading.Thread(target=send)
            start = time.monotonic()
            producer.start()
            early = 0
            while producer.is_alive() or ring.pending:
                if ring.poll(0.05):
                    drain()
                if not early and seen[0]:
                    early = resident()
            producer.join()
            took = time.monotonic() - start
            grown = resident() - early
        sent, dropped = live.vars["sent"], live.vars["dropped"]
    print(f"{way}: {seen[0]} events in {took:.2f} s, {dropped} dropped, {grown >> 10} KiB more")
    assert sent + dropped == EVENTS
    assert seen[0] == sent > 0
    assert ordered[0]
    assert early
    assert grown < EVENTS * 64 // 4  # those who keep them need four times as much, and more
