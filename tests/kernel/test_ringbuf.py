# SPDX-License-Identifier: BSD-2-Clause
"""Ring buffers filled by a program on this machine."""

from __future__ import annotations

import struct
import threading
import time

import pytest

from pybpf.errors import UsageError
from pybpf.kernel.map import create
from pybpf.kernel.program import Program
from pybpf.kernel.ringbuf import RingBuffer
from pybpf.plan import ops
from pybpf.plan.run import run
from pybpf.sys import abi
from tests.kernel.helpers import (
    HASH,
    RINGBUF,
    SYSCALL,
    call,
    insn,
    ldimm64,
    mov,
    mov_reg,
    plan,
    prog,
    returns,
)

pytestmark = pytest.mark.kernel

SIZE = 4096
EVENT = ("struct", 16, (("number", 0, ("int", 8, False)), ("flag", 8, ("int", 4, True))))


def output(size: int, flags: int = 0) -> bytes:
    """bpf_ringbuf_output(ring, ctx's copy on the stack, size, flags); returns its result.

    The first 8 bytes of the record are the context's first word, the rest is zero."""
    code = insn(0x79, 6, 1, 0)  # r6 = *(u64 *)ctx
    slots = (size + 7) // 8 * 8
    for at in range(8, slots, 8):
        code += insn(0x7A, 10, 0, at - slots)
    code += insn(0x7B, 10, 6, -slots) + ldimm64(1, abi.BPF_PSEUDO_MAP_IDX)
    code += mov_reg(2, 10) + insn(0x07, 2, imm=-slots) + mov(3, size) + mov(4, flags)
    return code + call(130) + insn(0x95)


def discard() -> bytes:
    """Reserve 24 bytes and discard them."""
    code = ldimm64(1, abi.BPF_PSEUDO_MAP_IDX) + mov(2, 24) + mov(3, 0) + call(131)
    code += insn(0x55, 0, 0, 2) + returns(1)  # if r0 != 0 goto +2
    return code + mov_reg(1, 0) + mov(2, 0) + call(133) + returns(0)


def the_plan(prefix: str, *programs: tuple[str, bytes], size: int = SIZE) -> ops.Plan:
    return plan(
        ops.MapCreate(dst=0, name=f"{prefix}_r", type=RINGBUF, key_size=0, value_size=0,
                      max_entries=size),
        *(
            prog(i + 1, f"{prefix}_{name}", code, SYSCALL, fd_array=(0,),
                 flags=abi.BPF_F_SLEEPABLE)
            for i, (name, code) in enumerate(programs)
        ),
    )  # fmt: skip


def send(program: Program, number: int) -> int:
    return program.test_run(ctx=struct.pack("=Q", number)).retval


def test_records_arrive_whole_and_in_order(prefix: str) -> None:
    with run(the_plan(prefix, ("o", output(16)))) as obj:
        program = obj.programs[f"{prefix}_o"]
        with RingBuffer(obj.maps[f"{prefix}_r"], EVENT) as ring:
            assert ring.read() == []
            assert not ring.poll(0)
            for i in range(5):
                assert send(program, i) == 0
            assert ring.pending == 5 * 24
            assert ring.poll(0)
            assert ring.read(limit=2) == [{"number": 0, "flag": 0}, {"number": 1, "flag": 0}]
            assert [event["number"] for event in ring.wait(1)] == [2, 3, 4]
            assert ring.pending == 0
            assert ring.records == 5


def test_it_goes_round_many_times(prefix: str) -> None:
    """Records of 20 bytes do not divide the ring: many of them cross its end."""
    with run(the_plan(prefix, ("o", output(20)))) as obj:
        program = obj.programs[f"{prefix}_o"]
        with RingBuffer(obj.maps[f"{prefix}_r"]) as ring:
            for start in range(0, 2000, 100):
                for i in range(start, start + 100):
                    assert send(program, i) == 0
                got = ring.read()
                assert [struct.unpack_from("=Q", r)[0] for r in got] == [*range(start, start + 100)]
                assert {len(r) for r in got} == {20}


def test_a_full_ring_refuses_and_recovers(prefix: str) -> None:
    with run(the_plan(prefix, ("o", output(56)))) as obj:
        program = obj.programs[f"{prefix}_o"]
        with RingBuffer(obj.maps[f"{prefix}_r"]) as ring:
            results = [send(program, i) for i in range(SIZE // 64 + 5)]
            full = results.count(2**32 - 11)  # -EAGAIN
            assert full == 5 or full == 6  # one record's room may stay free
            assert len(ring.read()) == len(results) - full
            assert send(program, 1) == 0
            assert len(ring.read()) == 1


def test_discarded_records_are_counted_not_given(prefix: str) -> None:
    with (
        run(the_plan(prefix, ("d", discard()), ("o", output(8)))) as obj,
        RingBuffer(obj.maps[f"{prefix}_r"]) as ring,
    ):
        assert send(obj.programs[f"{prefix}_d"], 0) == 0
        assert send(obj.programs[f"{prefix}_o"], 9) == 0
        assert ring.read() == [struct.pack("=Q", 9)]
        assert ring.discarded == 1


def test_waiting_is_ended_by_a_record(prefix: str) -> None:
    with run(the_plan(prefix, ("o", output(8)))) as obj:
        program = obj.programs[f"{prefix}_o"]
        with RingBuffer(obj.maps[f"{prefix}_r"]) as ring:
            start = time.monotonic()
            assert ring.wait(0.05) == []
            assert time.monotonic() - start >= 0.04
            timer = threading.Timer(0.1, lambda: send(program, 7))
            timer.start()
            assert ring.wait(120) == [struct.pack("=Q", 7)]
            timer.join()


def test_a_record_is_read_in_place_and_freed_after_the_callback(prefix: str) -> None:
    with run(the_plan(prefix, ("o", output(8)))) as obj:
        program = obj.programs[f"{prefix}_o"]
        with RingBuffer(obj.maps[f"{prefix}_r"]) as ring:
            send(program, 1)
            send(program, 2)
            kept: list[memoryview] = []

            def look(record: memoryview) -> None:
                assert ring.pending == 32
                kept.append(record)
                raise RuntimeError("of the callback")

            with pytest.raises(RuntimeError, match="of the callback"):
                ring.consume(look)
            with pytest.raises(ValueError, match="released"):
                bytes(kept[0])
            assert ring.read() == [struct.pack("=Q", 2)]


def test_what_comes_during_a_callback_waits_for_the_next_call(prefix: str) -> None:
    """Else a program that is faster than the callback would keep ``consume`` for ever."""
    with (
        run(the_plan(prefix, ("o", output(8)))) as obj,
        RingBuffer(obj.maps[f"{prefix}_r"]) as ring,
    ):
        program = obj.programs[f"{prefix}_o"]
        seen: list[int] = []

        def one(record: memoryview) -> None:
            number = struct.unpack_from("=Q", record)[0]
            seen.append(number)
            if number < 100:  # the end of an endless loop, should there be one
                send(program, number + 10)

        for number in range(3):
            send(program, number)
        assert ring.consume(one) == 3
        assert seen == [0, 1, 2]
        assert ring.consume(one) == 3
        assert seen[3:] == [10, 11, 12]


def test_iteration(prefix: str) -> None:
    with run(the_plan(prefix, ("o", output(8)))) as obj:
        program = obj.programs[f"{prefix}_o"]
        with RingBuffer(obj.maps[f"{prefix}_r"]) as ring:
            for i in range(3):
                send(program, i)
            events = iter(ring)
            assert [next(events) for _ in range(3)] == [struct.pack("=Q", i) for i in range(3)]
            assert ring.fileno() == obj.maps[f"{prefix}_r"].fileno()


def test_other_maps_are_refused(prefix: str) -> None:
    with create(HASH, 4, 4, 1, name=f"{prefix}_h") as m, pytest.raises(UsageError):
        RingBuffer(m)
