# SPDX-License-Identifier: BSD-2-Clause
"""What this kernel lacks, asked of the kernel itself and not of the code under test.

A test that a kernel cannot pass is skipped for a reason that is found here: an enum of the kernel
without the name, a function that was not built in, a folder of sysfs that is not there, lockdown,
a minimal program that is refused. Whatever else fails is a failure.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pybpf.btf.consts import KIND_ENUM, KIND_FUNC, KIND_STRUCT
from pybpf.btf.model import Btf
from pybpf.kernel import features
from pybpf.sys import abi, bpf, diagnose
from tests.kernel.helpers import returns

__all__ = ["confidential", "enumerator", "function", "member", "need", "refused"]

_SYSFS = Path("/sys/bus/event_source/devices")


def enumerator(enum: str, name: str) -> str | None:
    """Why not, unless an enum of the kernel has this name."""
    found = Btf.vmlinux().find(enum, KIND_ENUM)
    names = {e.name for i in found for e in Btf.vmlinux().type(i).enumerators}
    return None if name in names else f"enum {enum} has no {name}"


def function(name: str) -> str | None:
    """Why not, unless the kernel was built with this function."""
    return None if Btf.vmlinux().find(name, KIND_FUNC) else f"the kernel has no function {name}"


def member(struct: str, name: str) -> str | None:
    """Why not, unless a struct of the kernel has this member."""
    btf = Btf.vmlinux()
    found = any(name in btf.type(i).member_names for i in btf.find(struct, KIND_STRUCT))
    return None if found else f"struct {struct} has no {name}"


def confidential() -> str | None:
    """Why not: lockdown=confidentiality refuses kprobes and tracefs to everybody."""
    return "the kernel is locked down" if diagnose.lockdown() == "confidentiality" else None


def _probe(device: str) -> str | None:
    return confidential() or (None if (_SYSFS / device).exists() else f"no {_SYSFS / device}")


def _tracepoint() -> str | None:
    if Path("/sys/kernel/tracing/events").is_dir() or Path("/sys/kernel/debug/tracing").is_dir():
        return confidential()
    return "tracefs is not mounted"


@functools.cache
def refused(program: int, attach: int, to: str) -> str | None:
    """Why not: this machine answers EPERM, and nothing else, to the least program of a kind."""
    (btf_id, *_) = Btf.vmlinux().find(to, KIND_FUNC)
    error = features.load_probe(
        returns(0), prog_type=program, expected_attach_type=attach, attach_btf_id=btf_id
    )
    if error is None or error.errno != bpf.EPERM:
        return None
    return f"EPERM is the answer to every program of type {program}, attach type {attach}"


def _tracing() -> str | None:
    return refused(abi.BPF_PROG_TYPE_TRACING, abi.BPF_TRACE_FENTRY, "do_sys_openat2")


def _multi_kprobes() -> str | None:
    return function("bpf_kprobe_multi_link_release")  # CONFIG_FPROBE


def _attach_type(name: str) -> str | None:
    return enumerator("bpf_attach_type", name)


_LACKS: dict[str, Callable[[], str | None]] = {
    **dict.fromkeys(
        ("kprobe", "kretprobe", "ksyscall", "kretsyscall", "kprobe_open", "kretprobe_open",
         "ksyscall_prio", "kretsyscall_prio"), lambda: _probe("kprobe"),
    ),
    **dict.fromkeys(("kprobe_multi", "kretprobe_multi", "kprobe_session"), _multi_kprobes),
    "tracepoint": _tracepoint,
    **dict.fromkeys(
        ("fentry", "fexit", "replacement", "of_program", "after_program"), _tracing,
    ),
    "fsession": lambda: _attach_type("BPF_TRACE_FSESSION") or _tracing(),
    "fentry_multi": lambda: _attach_type("BPF_TRACE_FENTRY_MULTI") or _tracing(),
    "fexit_multi": lambda: _attach_type("BPF_TRACE_FEXIT_MULTI") or _tracing(),
    "fsession_multi": lambda: _attach_type("BPF_TRACE_FSESSION_MULTI") or _tracing(),
    "uprobe_session": lambda: _attach_type("BPF_TRACE_UPROBE_SESSION"),
    "fmod_ret": lambda: refused(
        abi.BPF_PROG_TYPE_TRACING, abi.BPF_MODIFY_RETURN, "security_task_getsid"
    ),
    "lsm": lambda: refused(abi.BPF_PROG_TYPE_LSM, abi.BPF_LSM_MAC, "bpf_lsm_task_getsid"),
    "lsm_cgroup": lambda: refused(
        abi.BPF_PROG_TYPE_LSM, abi.BPF_LSM_CGROUP, "bpf_lsm_socket_bind"
    ),
    "arenas": lambda: enumerator("bpf_map_type", "BPF_MAP_TYPE_ARENA"),
    "insn_array": lambda: enumerator("bpf_map_type", "BPF_MAP_TYPE_INSN_ARRAY"),
    "exclusive maps": lambda: member("bpf_map", "excl_prog_sha"),
    "lirc": lambda: function("lirc_prog_attach"),  # CONFIG_BPF_LIRC_MODE2
    "seg6local": lambda: function("bpf_lwt_seg6_action"),  # CONFIG_IPV6_SEG6_BPF
    "kfuncs of cpumasks": lambda: function("bpf_cpumask_create"),
}  # fmt: skip


def need(what: str) -> None:
    """Skip the test where the kernel lacks ``what``, which tests/vm/test_attach.py may name."""
    why = _LACKS[what]() if what in _LACKS else None
    if why is not None:
        pytest.skip(f"no {what} here, {os.uname().release}: {why}")
