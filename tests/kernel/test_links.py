# SPDX-License-Identifier: BSD-2-Clause
"""Links of the kinds this machine takes; handing fds over; the order of closing."""

from __future__ import annotations

import json
import os
import posix
import subprocess
import sys
from pathlib import Path

import pytest

from pybpf.errors import KernelError, PlanError, UsageError
from pybpf.kernel.link import Link
from pybpf.plan import ops
from pybpf.plan.run import run
from pybpf.sys import abi, bpf, layouts, syscalls
from tests.kernel.helpers import (
    RAW_TP,
    SOCKET,
    TRACING,
    array,
    call,
    insn,
    ldimm64,
    mov_reg,
    plan,
    prog,
    returns,
    settle,
)
from tests.kernel.lacks import need

pytestmark = pytest.mark.kernel


def counting(prefix: str, *links: ops.Op, **program: object) -> ops.Plan:
    """A Plan whose program counts its runs in element 0 of a map."""
    code = (
        ldimm64(1, abi.BPF_PSEUDO_MAP_IDX_VALUE) + insn(0xB7, 2, imm=1)
        + insn(0xDB, 1, 2) + returns(1)  # lock *(u64 *)r1 += r2; CGROUP_SKB 1: let pass
    )  # fmt: skip
    return plan(
        ops.Lookup(names=((0, "btf_trace_sys_enter", abi.BTF_KIND_TYPEDEF, None, True),)),
        array(0, f"{prefix}_n"),
        prog(1, f"{prefix}_p", code, fd_array=(0,), **program),  # type: ignore[arg-type]
        attach=links,
    )


def runs(obj: object, prefix: str) -> int:
    return int.from_bytes(obj.maps[f"{prefix}_n"][0], sys.byteorder)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["link", "raw_tracepoint"])
def test_a_btf_raw_tracepoint_fires(how: str, prefix: str) -> None:
    the_plan = counting(
        prefix,
        ops.LinkCreate(dst=2, name="tp", prog=1, how=how, attach_type=abi.BPF_TRACE_RAW_TP),
        type=TRACING, expected_attach_type=abi.BPF_TRACE_RAW_TP, attach_symbol=0,
    )  # fmt: skip
    # The verifier wants 0 from tp_btf programs up to 6.x: returns(1) is refused.
    insns = the_plan.ops[-1].insns[:-16] + returns(0)  # type: ignore[attr-defined]
    the_plan.ops[-1].insns = insns  # type: ignore[attr-defined]
    with run(the_plan) as obj:
        before = runs(obj, prefix)
        obj.attach()
        info = obj.links["tp"].info()
        assert info["prog_id"] == obj.programs[f"{prefix}_p"].id
        os.getppid()
        assert runs(obj, prefix) > before
        # What kind of link this is differs between releases; neither can be detached by command.
        with pytest.raises(KernelError) as caught:
            obj.links["tp"].detach()
        assert caught.value.errno in (95, 22)
        obj.detach()
        assert settle(lambda: (runs(obj, prefix), runs(obj, prefix))[0] == runs(obj, prefix))
        obj.close()
        with pytest.raises(UsageError, match="closed"):
            obj.attach()


def test_a_raw_tracepoint_by_name(prefix: str) -> None:
    the_plan = counting(
        prefix,
        ops.LinkCreate(dst=2, name="tp", prog=1, how="raw_tracepoint", target="sys_enter"),
        type=RAW_TP,
    )
    with run(the_plan).attach() as obj:
        assert obj.links["tp"].info()["tp_name"] == "sys_enter"
        os.getppid()
        assert runs(obj, prefix) > 0


def test_an_unknown_raw_tracepoint(prefix: str) -> None:
    the_plan = counting(
        prefix,
        ops.LinkCreate(dst=2, name="tp", prog=1, how="raw_tracepoint", target="no_such"),
        type=RAW_TP,
    )
    with run(the_plan) as obj, pytest.raises(KernelError, match="ENOENT") as caught:
        obj.attach()
    assert caught.value.where["link"] == "tp"


@pytest.mark.parametrize(
    ("how", "target", "kind"),
    [
        ("kprobe", "do_sys_openat2", abi.BPF_PROG_TYPE_KPROBE),
        ("kretprobe", "do_sys_openat2", abi.BPF_PROG_TYPE_KPROBE),
        ("ksyscall", "getpriority", abi.BPF_PROG_TYPE_KPROBE),
        ("tracepoint", "syscalls/sys_enter_getpriority", abi.BPF_PROG_TYPE_TRACEPOINT),
    ],
)
def test_perf_events(how: str, target: str, kind: int, prefix: str) -> None:
    the_plan = counting(prefix, ops.LinkCreate(dst=2, name="probe", prog=1, how=how, target=target),
                        type=kind)  # fmt: skip
    need(how)
    with run(the_plan) as obj:
        obj.attach()
        with open("/dev/null"):
            os.getpriority(os.PRIO_PROCESS, 0)
        assert runs(obj, prefix) > 0
        assert obj.links["probe"].type == abi.BPF_LINK_TYPE_PERF_EVENT


def test_a_software_perf_event(prefix: str) -> None:
    attr = bpf.pack(
        layouts.ATTR_PERF_EVENT,
        layouts.SIZE_PERF_EVENT,
        # CPU clock (config 0) of this process, every 100 microseconds
        {"type": abi.PERF_TYPE_SOFTWARE, "size": 112, "sample_period": 100_000},
    )
    event = syscalls.perf_event_open(attr, 0, -1)
    the_plan = counting(
        prefix,
        ops.LinkCreate(dst=2, name="clock", prog=1, how="perf_event", target=event,
                       extra=(("perf_event.bpf_cookie", 7),)),
        type=abi.BPF_PROG_TYPE_PERF_EVENT,
    )  # fmt: skip
    with run(the_plan).attach() as obj:
        os.close(event)
        assert obj.links["clock"].type == abi.BPF_LINK_TYPE_PERF_EVENT
        assert settle(lambda: sum(i * i for i in range(100_000)) > 0 and runs(obj, prefix) > 0)


def test_a_cgroup(prefix: str, tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", str(root)], check=True)
    group = root / f"{prefix}_g"
    try:
        group.mkdir()
        for how in ("cgroup", "prog_attach"):
            the_plan = counting(
                prefix,
                ops.LinkCreate(dst=2, name="g", prog=1, how=how, target=str(group),
                               attach_type=abi.BPF_CGROUP_INET_EGRESS),
                type=abi.BPF_PROG_TYPE_CGROUP_SKB,
            )  # fmt: skip
            with run(the_plan).attach() as obj:
                fd = os.open(group, os.O_RDONLY)
                ids = bpf.prog_query(fd, abi.BPF_CGROUP_INET_EGRESS)
                assert ids == [obj.programs[f"{prefix}_p"].id]
                if how == "cgroup":
                    info = obj.links["g"].info()
                    assert info["attach_type"] == abi.BPF_CGROUP_INET_EGRESS
                    assert info["cgroup_id"] == os.stat(group).st_ino
                    other = run(counting(prefix, type=abi.BPF_PROG_TYPE_CGROUP_SKB))
                    with other:
                        new = other.programs[f"{prefix}_p"]
                        obj.links["g"].update(new.fileno())
                        assert bpf.prog_query(fd, abi.BPF_CGROUP_INET_EGRESS) == [new.id]
                    obj.links["g"].detach()
                else:
                    obj.detach()
                assert bpf.prog_query(fd, abi.BPF_CGROUP_INET_EGRESS) == []
                os.close(fd)
    finally:
        if group.exists():
            group.rmdir()
        subprocess.run(["umount", str(root)], check=True)


def test_an_interface(prefix: str) -> None:
    the_plan = plan(
        prog(0, f"{prefix}_x", returns(2), abi.BPF_PROG_TYPE_XDP),
        attach=(
            ops.LinkCreate(dst=1, name="x", prog=0, how="interface", target="lo",
                           attach_type=abi.BPF_XDP, flags=1 << 1),  # XDP_FLAGS_SKB_MODE
        ),
    )  # fmt: skip
    with run(the_plan) as obj:
        obj.attach()
        assert obj.links["x"].info()["ifindex"] == 1


def test_an_iterator_over_a_map(prefix: str) -> None:
    """iter/bpf_map_elem: seq_write(meta->seq, key, 4) for each element."""
    code = (
        insn(0x79, 6, 1, 0)  # r6 = ctx->meta
        + insn(0x79, 2, 1, 16)  # r2 = ctx->key
        + insn(0x55, 2, 0, 2)  # if r2 != 0 goto +2
        + returns(0)
        + insn(0x61, 3, 2, 0)  # r3 = *(u32 *)key
        + insn(0x63, 10, 3, -8)
        + insn(0x79, 1, 6, 0)  # r1 = meta->seq
        + mov_reg(2, 10)
        + insn(0x07, 2, imm=-8)
        + insn(0xB7, 3, imm=4)
        + call(127)  # bpf_seq_write
        + returns(0)
    )
    the_plan = plan(
        ops.Lookup(names=((0, "bpf_iter_bpf_map_elem", abi.BTF_KIND_FUNC, None, False),)),
        ops.MapCreate(dst=0, name=f"{prefix}_h", type=1, key_size=4, value_size=4, max_entries=8),
        ops.MapFill(map=0, entries=((b"abcd", bytes(4)), (b"wxyz", bytes(4)))),
        prog(1, f"{prefix}_it", code, TRACING, expected_attach_type=abi.BPF_TRACE_ITER,
             attach_symbol=0),
        attach=(ops.LinkCreate(dst=2, name="it", prog=1, how="iter", target=0,
                               attach_type=abi.BPF_TRACE_ITER),),
    )  # fmt: skip
    with run(the_plan).attach() as obj:
        assert obj.links["it"].info()["target_name"] == "bpf_map_elem"
        fd = bpf.iter_create(obj.links["it"].fileno())
        with open(fd, "rb", buffering=0) as out:
            data = out.read(100)
        assert sorted([data[:4], data[4:8]]) == [b"abcd", b"wxyz"]


def test_bad_targets(prefix: str) -> None:
    for how, target, sentence in (
        ("cgroup", "/no/such", "ENOENT"),
        ("interface", "no_such_if", "ENODEV"),
        ("tracepoint", "one", "category/name"),
        ("tracepoint", "no/such", "ENOENT"),
        ("kprobe", "f+x", "no number"),
        ("smoke", None, "no way to attach"),
    ):
        the_plan = plan(
            prog(0, f"{prefix}_p", returns(0), SOCKET),
            attach=(ops.LinkCreate(dst=1, name="l", prog=0, how=how, target=target),),
        )
        with run(the_plan) as obj, pytest.raises((KernelError, PlanError), match=sentence):
            obj.attach()


def _two_links(prefix: str) -> ops.Plan:
    return counting(
        prefix,
        ops.LinkCreate(dst=2, name="one", prog=1, how="raw_tracepoint", target="sys_enter"),
        ops.LinkCreate(dst=3, name="two", prog=1, how="raw_tracepoint", target="sys_exit"),
        type=RAW_TP,
    )


def test_fds_go_across_exec(prefix: str) -> None:
    """A successor takes links and a map over, looks at what they are, and is their only owner."""
    successor = (
        "import sys, json\n"
        "from pybpf.kernel.link import Link\n"
        "from pybpf.kernel.map import Map\n"
        "from pybpf.errors import UsageError\n"
        "fds = json.loads(sys.argv[1])\n"
        "links = {n: Link.from_fd(fd, name=n) for n, fd in fds['links'].items()}\n"
        "m = Map.from_fd(next(iter(fds['maps'].values())))\n"
        "try:\n"
        "    Link.from_fd(m.fd)\n"
        "except UsageError as error:\n"
        "    wrong = str(error)\n"
        "before = int.from_bytes(m[0], 'little')\n"
        "import os; os.getppid()\n"
        "print(json.dumps({'links': {n: l.info() for n, l in links.items()}, 'wrong': wrong,\n"
        "    'grew': int.from_bytes(m[0], 'little') > before, 'map': m.info()['id']}))\n"
    )
    obj = run(_two_links(prefix)).attach()
    program, counter = obj.programs[f"{prefix}_p"].id, obj.maps[f"{prefix}_n"].id
    handed = obj.inherit(maps=[f"{prefix}_n"])
    fds = [fd for part in handed.values() for fd in part.values()]
    child = subprocess.Popen(
        [sys.executable, "-c", successor, json.dumps(handed)],
        stdout=subprocess.PIPE, pass_fds=fds, text=True,
    )  # fmt: skip
    for fd in fds:
        os.close(fd)
    obj.close()
    out, _ = child.communicate(timeout=300)
    got = json.loads(out)
    assert [link["prog_id"] for link in got["links"].values()] == [program, program]
    assert [link["tp_name"] for link in got["links"].values()] == ["sys_enter", "sys_exit"]
    assert got["grew"]
    assert got["map"] == counter
    assert "is map, not a BPF link" in got["wrong"]


def test_unknown_names_are_not_handed_over(prefix: str) -> None:
    with run(_two_links(prefix)).attach() as obj, pytest.raises(UsageError, match="no map 'x'"):
        obj.inherit(maps=["x"])


def test_detached_fds_are_the_callers(prefix: str) -> None:
    obj = run(_two_links(prefix)).attach()
    fds = obj.detach_fds()
    assert obj.closed
    link = Link.from_fd(fds["links"]["one"])
    assert link.info()["tp_name"] == "sys_enter"
    link.close()
    for fd in (fds["links"]["two"], *fds["maps"].values(), *fds["programs"].values()):
        os.close(fd)


def test_a_link_closed_by_hand_is_not_closed_again(prefix: str) -> None:
    """Its fd number may belong to somebody else by then."""
    for end in ("close", "detach"):
        obj = run(_two_links(prefix)).attach()
        number = obj.links["one"].fd
        obj.links["one"].close()
        other = os.open("/dev/null", os.O_RDONLY)
        assert other == number
        getattr(obj, end)()
        os.fstat(other)
        os.close(other)
        obj.close()


def test_closing_goes_on_after_a_failure(prefix: str) -> None:
    obj = run(_two_links(prefix)).attach()
    os.close(obj.links["two"].fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        obj.close()
    assert obj.closed


def watch_closing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The fds that are closed from now on, in order."""
    closed: list[int] = []
    real = posix.close

    def close(fd: int) -> None:
        closed.append(fd)
        real(fd)

    monkeypatch.setattr(posix, "close", close)
    return closed


def test_links_close_first_and_in_reverse(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    obj = run(_two_links(prefix)).attach()
    expected = [obj.links["two"].fd, obj.links["one"].fd, obj.programs[f"{prefix}_p"].fd,
                obj.maps[f"{prefix}_n"].fd]  # fmt: skip
    closed = watch_closing(monkeypatch)
    obj.close()
    monkeypatch.undo()
    assert closed == expected


def test_the_same_order_where_nobody_asked_for_an_object(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = run(_two_links(prefix)).attach()
    executor = obj._executor
    assert executor is not None
    assert [len(part) for part in obj.fds().values()] == [1, 1, 2]
    the_plan = obj.plan
    places = [the_plan.links["two"], the_plan.links["one"], the_plan.programs[f"{prefix}_p"],
              the_plan.maps[f"{prefix}_n"][0]]  # fmt: skip
    expected = [executor.slots[place] for place in places]
    assert min(expected) > 2
    closed = watch_closing(monkeypatch)
    obj.close()
    monkeypatch.undo()
    assert closed == expected
    assert (obj.maps, obj.programs, obj.links) == ({}, {}, {})
    assert obj.fds() == {"maps": {}, "programs": {}, "links": {}}
