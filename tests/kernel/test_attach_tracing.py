# SPDX-License-Identifier: BSD-2-Clause
"""Probes and tracing, of the kernel, of programs in user space and of other BPF programs.

As in test_attach, each way is shown by its effect.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pybpf
from pybpf.errors import PlanError, PybpfError, SymbolNotFoundError, UsageError
from pybpf.plan.run import run
from pybpf.sys import abi, bpf, layouts, syscalls
from tests.kernel.attaching import counts, getpriority, load, only, open_null
from tests.kernel.helpers import plan, prog, returns, settle

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    ("program", "act", "times"),
    [
        ("kprobe_open", open_null, 1),
        ("kretprobe_open", open_null, 1),
        ("ksyscall_prio", getpriority, 1),
        ("kretsyscall_prio", getpriority, 1),
        ("kprobe_multi", open_null, 1),
        ("kretprobe_multi", open_null, 1),
        ("kprobe_session", open_null, 2),
        ("tracepoint", getpriority, 1),
        ("raw_tp", getpriority, 1),
        ("tp_btf", getpriority, 1),
        ("fentry", open_null, 1),
        ("fexit", open_null, 1),
        ("fsession", open_null, 2),
        ("fentry_multi", open_null, 1),
        ("fexit_multi", open_null, 1),
        ("uprobe_auto", os.getppid, 1),
        ("uprobe_multi_auto", os.getppid, 1),
    ],
)
def test_attaching_by_the_section_alone(
    program: str, act: Callable[[], object], times: int, prefix: str
) -> None:
    with load(program) as obj:
        obj.attach()
        assert counts(obj, act) >= times
        link = obj.links[program]
        assert link.info()["prog_id"] == obj.programs[program].id
        obj.detach()
        assert settle(lambda: counts(obj, act) == 0)


@pytest.mark.parametrize("program", ["on_uprobe", "on_uretprobe", "uprobe_multi",
                                     "uretprobe_multi", "uprobe_session"])  # fmt: skip
def test_user_probes_with_a_cookie(program: str, prefix: str) -> None:
    with load(program) as obj:
        obj.attach_program(program, "libc.so.6:getppid", cookie=77)
        assert counts(obj, os.getppid) == (2 if program == "uprobe_session" else 1)
        assert obj.vars["cookie"] == 77
        assert counts(obj, os.getpid) == 0
        obj.detach()
        assert counts(obj, os.getppid) == 0


def test_a_session_of_many_functions(prefix: str) -> None:
    """One link, two functions, entry and return of each; the cookie is seen."""
    with load("fsession_multi") as obj:
        link = obj.attach_program("fsession_multi", "__x64_sys_getres?id", cookie=78)
        assert link is not None
        assert link.info()["count"] == 2
        assert counts(obj, os.getresuid) == 2
        assert obj.vars["cookie"] == 78
        assert counts(obj, os.getegid) == 0
        assert counts(obj, os.getresgid) == 2
        with pytest.raises(PlanError, match="describes no function"):
            obj.attach_program("fsession_multi", "no_such_function_at_all")
        with pytest.raises(PlanError, match="0 functions"):
            obj.attach_program("fsession_multi", "no_such_function_*")


def test_a_user_probe_of_one_process(prefix: str) -> None:
    child = subprocess.Popen(["sleep", "infinity"])
    try:
        with load("on_uprobe") as obj:
            obj.attach_program("on_uprobe", "libc.so.6:getppid", pid=child.pid)
            assert counts(obj, os.getppid) == 0
            obj.attach_program("on_uprobe", "libc.so.6:getppid", pid=os.getpid())
            assert counts(obj, os.getppid) == 1
            assert sorted(obj.links) == ["on_uprobe", "on_uprobe.2"]
    finally:
        child.kill()
        child.wait()


def test_places_in_programs_that_do_not_exist(prefix: str, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\x7fELF" + bytes(40))
    with load("on_uprobe") as obj:
        for target, told in (
            ("libc.so.6:no_such_function_at_all", "defines no function"),
            ("no_such_library.so:f", "there is no file"),
            ("/no/such/file:f", "ENOENT"),
            (f"{rubbish}:f", "no usable ELF"),
            ("nothing", "'path:function'"),
            ("libc.so.6:getppid+x", "no number"),
            ("libc.so.6:getp*", "pattern"),
        ):
            with pytest.raises(PybpfError, match=told):
                obj.attach_program("on_uprobe", target)
        assert obj.links == {}
        assert not obj.attached


def test_a_perf_event(prefix: str) -> None:
    """A clock of this process: PERF_TYPE_SOFTWARE, CPU clock, every 100 microseconds."""
    attr = bpf.pack(
        layouts.ATTR_PERF_EVENT,
        layouts.SIZE_PERF_EVENT,
        {"type": abi.PERF_TYPE_SOFTWARE, "size": 112, "sample_period": 100_000},
    )
    event = syscalls.perf_event_open(attr, 0, -1)
    try:
        with load("on_perf_event") as obj:
            obj.attach_program("on_perf_event", event, cookie=5)
            assert settle(lambda: counts(obj, lambda: sum(range(100_000))) > 0)
            assert obj.vars["cookie"] == 5
    finally:
        os.close(event)


@pytest.mark.parametrize("program", ["fmod_ret", "lsm"])
def test_a_changed_result(program: str, prefix: str) -> None:
    with load(program) as obj:
        assert os.getsid(os.getpid())
        obj.attach()
        with pytest.raises(PermissionError):
            os.getsid(os.getpid())
        assert obj.vars["count"] == 1
        obj.detach()
        assert settle(lambda: bool(os.getsid(os.getpid())))


@pytest.mark.parametrize(
    ("program", "retval"), [("replacement", 42), ("of_program", 1), ("after_program", 1)]
)
def test_a_function_of_a_loaded_program(program: str, retval: int, prefix: str) -> None:
    """freplace: the program goes on with the new function until the link is closed. fentry and
    fexit trace it."""
    five = struct.pack("=Q", 5)
    with load("call_replaceable") as obj:
        target = obj.programs["call_replaceable"]
        assert target.test_run(ctx=five).retval == 1
        with load(program, targets={program: target}).attach() as other:
            assert target.test_run(ctx=five).retval == retval
            assert other.vars["seen"] == 5
            assert other.vars["count"] == 1
            other.detach()
            assert settle(lambda: target.test_run(ctx=five).retval == 1)
            assert settle(lambda: counts(other, lambda: target.test_run(ctx=five)) == 0)


def test_functions_that_the_loaded_program_lacks(prefix: str) -> None:
    with run(plan(prog(0, f"{prefix}_p", returns(0)))) as obj:
        loaded = obj.programs[f"{prefix}_p"]
        with pytest.raises(SymbolNotFoundError, match="without BTF, so it has no function"):
            pybpf.load(only("replacement"), targets={"replacement": loaded})
        with pytest.raises(UsageError, match="no program 'x'"):
            pybpf.load(only("replacement"), targets={"x": loaded})
        with pytest.raises(PybpfError, match="targets="):
            pybpf.load(only("replacement"))
