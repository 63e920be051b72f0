# SPDX-License-Identifier: BSD-2-Clause
"""Programs of the types this machine takes: load, run, information, refusals."""

from __future__ import annotations

import struct

import pytest

from pybpf.errors import KernelError, VerifierError
from pybpf.kernel.program import Program, load_fd
from pybpf.plan.run import run
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer
from tests.kernel.helpers import (
    EXIT,
    RAW_TP,
    SOCKET,
    SYSCALL,
    XDP,
    array,
    insn,
    ldimm64,
    mov,
    mov_reg,
    plan,
    prog,
    returns,
)

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (SOCKET, {}),
        (XDP, {}),
        (RAW_TP, {}),
        (SYSCALL, {"flags": abi.BPF_F_SLEEPABLE}),
        (abi.BPF_PROG_TYPE_SCHED_CLS, {}),
        (abi.BPF_PROG_TYPE_KPROBE, {}),
        (abi.BPF_PROG_TYPE_TRACEPOINT, {}),
        (abi.BPF_PROG_TYPE_CGROUP_SKB, {}),
        (abi.BPF_PROG_TYPE_CGROUP_SYSCTL, {}),
        (abi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
         {"expected_attach_type": abi.BPF_CGROUP_INET4_CONNECT}),
    ],
)  # fmt: skip
def test_types_that_load_here(kind: int, more: dict[str, int], prefix: str) -> None:
    with run(plan(prog(0, f"{prefix}_p", returns(1), kind, **more))) as obj:
        info = obj.programs[f"{prefix}_p"].info()
        assert info["type"] == kind
        assert info["name"] == f"{prefix}_p"
        assert info["gpl_compatible"]
        assert len(info["tag"]) == 16


def test_a_socket_filter_runs(prefix: str) -> None:
    # r0 = *(u32 *)(skb->len); return it
    code = insn(0x61, 0, 1, 0) + EXIT
    with run(plan(prog(0, f"{prefix}_s", code))) as obj:
        result = obj.programs[f"{prefix}_s"].test_run(bytes(60), repeat=10)
        assert result.retval == 60 - 14  # the Ethernet header is pulled off
        assert result.duration < 10**7


def test_xdp_sees_its_packet(prefix: str) -> None:
    # return XDP_PASS if data + 14 <= data_end and the first byte is 0xab, else XDP_DROP
    code = (
        insn(0x61, 2, 1, 0)  # r2 = data
        + insn(0x61, 3, 1, 4)  # r3 = data_end
        + mov_reg(4, 2)
        + insn(0x07, 4, imm=14)
        + mov(0, 1)
        + insn(0x2D, 4, 3, 3)  # if r4 > r3 goto +3
        + insn(0x71, 5, 2, 0)
        + insn(0x55, 5, 0, 1, 0xAB)  # if r5 != 0xab goto +1
        + mov(0, 2)
        + EXIT
    )
    with run(plan(prog(0, f"{prefix}_x", code, XDP))) as obj:
        xdp = obj.programs[f"{prefix}_x"]
        assert xdp.test_run(b"\xab" + bytes(20)).retval == 2
        assert xdp.test_run(bytes(21)).retval == 1
        with pytest.raises(KernelError) as caught:
            xdp.test_run(b"")
        assert caught.value.where["program"] == f"{prefix}_x"


def test_a_syscall_program_changes_its_context(prefix: str) -> None:
    code = insn(0x7A, 1, 0, 8, 4711) + returns(3)  # *(u64 *)(r1 + 8) = 4711
    the_plan = plan(prog(0, f"{prefix}_c", code, SYSCALL, flags=abi.BPF_F_SLEEPABLE))
    with run(the_plan) as obj:
        result = obj.programs[f"{prefix}_c"].test_run(ctx=bytes(16))
        assert result.retval == 3
        assert struct.unpack("=QQ", result.ctx) == (0, 4711)


def test_maps_of_a_program(prefix: str) -> None:
    # Increment element 0 of the map through its value's address, in both forms of reference.
    for source, patches, fds in (
        (abi.BPF_PSEUDO_MAP_VALUE, ((0, "map_fd", 0),), ()),
        (abi.BPF_PSEUDO_MAP_IDX_VALUE, (), (0,)),
    ):
        code = (
            ldimm64(1, source) + insn(0x79, 2, 1) + insn(0x07, 2, imm=1) + insn(0x7B, 1, 2)
            + returns(0)
        )  # fmt: skip
        the_plan = plan(
            array(0, f"{prefix}_m"), prog(1, f"{prefix}_p", code, patches=patches, fd_array=fds)
        )
        with run(the_plan) as obj:
            program, counter = obj.programs[f"{prefix}_p"], obj.maps[f"{prefix}_m"]
            program.test_run(bytes(20), repeat=5)
            assert counter[0] == struct.pack("=Q", 5)
            assert program.map_ids() == [counter.id]
            assert len(program.xlated()) >= len(code)


def test_statistics(prefix: str) -> None:
    import os

    with run(plan(prog(0, f"{prefix}_s", returns(0)))) as obj:
        program = obj.programs[f"{prefix}_s"]
        fd = bpf.enable_stats()
        program.test_run(bytes(20), repeat=100)
        os.close(fd)
        runs, nanoseconds, missed = program.stats()
        assert runs == 100
        assert nanoseconds > 0
        assert missed == 0


def test_a_refused_program_keeps_the_whole_log(prefix: str) -> None:
    code = mov_reg(0, 5) + EXIT
    with pytest.raises(VerifierError) as caught:
        run(plan(prog(0, f"{prefix}_bad", code, section="socket")))
    error = caught.value
    assert error.errno == 13
    assert "R5 !read_ok" in error.log
    assert "processed 1 insns" in error.log
    assert error.summary.startswith("R5 !read_ok. ")
    assert "At instruction 0 (r0 = r5)." in error.summary
    assert error.where == {
        "object": "test", "program": f"{prefix}_bad", "section": "socket", "insn": 0
    }  # fmt: skip
    assert str(error).startswith(
        f"object test, program {prefix}_bad, section socket, insn 0: the kernel refused the "
        "program with EACCES: R5 !read_ok."
    )


def test_the_log_grows_until_it_fits(prefix: str) -> None:
    """An accepted program whose log at level 2 is far beyond the first buffer."""
    code = b"".join(insn(0x07, 1, imm=0) + mov(2, i) for i in range(3000)).replace(
        insn(0x07, 1, imm=0), mov(3, 1)
    ) + returns(0)
    with run(plan(prog(0, f"{prefix}_l", code)), log_level=2) as obj:
        log = obj.logs[f"{prefix}_l"]
    assert len(log) > bpf.LOG_START
    assert "0: (b7) r3 = 1" in log
    assert "6001: (95) exit" in log
    assert "processed 6002 insns" in log


def test_a_small_buffer_does_not_hide_the_reason(prefix: str) -> None:
    code = b"".join(mov(3, i) for i in range(500)) + mov_reg(0, 5) + EXIT
    held = Pointer(code), Pointer(b"GPL\0")
    fields: dict[str, int | bytes] = {
        "prog_type": SOCKET, "insns": held[0].address, "insn_cnt": len(code) // 8,
        "license": held[1].address,
    }  # fmt: skip
    with pytest.raises(VerifierError, match="R5 !read_ok") as caught:
        load_fd(fields, log_level=2, log_size=256)
    assert "0: (b7) r3 = 0" in caught.value.log


def test_no_reason_without_a_log(prefix: str) -> None:
    """A program of an unknown type is refused before the verifier writes anything."""
    with pytest.raises(KernelError) as caught:
        run(plan(prog(0, f"{prefix}_u", returns(0), 999)))
    assert not isinstance(caught.value, VerifierError)
    assert caught.value.errno == 22


def test_by_id_and_by_pin(prefix: str, bpffs: object) -> None:
    import os

    with run(plan(prog(0, f"{prefix}_i", returns(0)))) as obj:
        program = obj.programs[f"{prefix}_i"]
        with Program.from_id(program.id) as other:
            assert other.tag == program.tag
            assert other.type == SOCKET
        program.pin(f"{bpffs}/prog")
    with Program.from_pin(f"{bpffs}/prog") as pinned:
        assert pinned.name == f"{prefix}_i"
    os.unlink(f"{bpffs}/prog")


def test_a_map_can_be_bound(prefix: str) -> None:
    with run(plan(array(0, f"{prefix}_b"), prog(1, f"{prefix}_q", returns(0)))) as obj:
        program, other = obj.programs[f"{prefix}_q"], obj.maps[f"{prefix}_b"]
        assert program.map_ids() == []
        program.bind_map(other.fileno())
        assert program.map_ids() == [other.id]
