# SPDX-License-Identifier: BSD-2-Clause
"""Attaching that needs more than one system call; imported when a Plan asks for it.

``how`` of a LinkCreate and what its ``target`` is:

    cgroup          path of a cgroup2 directory → BPF_LINK_CREATE on its fd (5.7)
    netns           path of a network namespace file → BPF_LINK_CREATE on its fd (5.8)
    interface       name of a network interface → BPF_LINK_CREATE on its index (XDP 5.9, tcx 6.6)
    iter            None, or the fd slot of the map to iterate over (5.8)
    struct_ops      None; ``prog`` is the map's slot (link 6.4: the map needs BPF_F_LINK)
    tracepoint      "category/name" → perf event and link (5.15; before: ioctl)
    ksyscall, kretsyscall    name of a system call: kprobe on this machine's entry of it
    kprobe, kretprobe    "function" or "function+offset" → the same (perf kprobe: 4.17)
    uprobe, uretprobe    "path:offset", offset in the file → the same
    perf_event      the fd of a perf event
    prog_attach     path of a cgroup2 directory, or an fd → BPF_PROG_ATTACH: no link; undone and
                    detached with BPF_PROG_DETACH; stays if the process just ends

``extra`` may give perf_event.bpf_cookie and other fields of BPF_LINK_CREATE.
"""

from __future__ import annotations

import os
import struct

from pybpf.errors import KernelError, PlanError
from pybpf.sys import abi, bpf, layouts, syscalls
from pybpf.sys.syscalls import Pointer, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.plan.ops import LinkCreate
    from pybpf.plan.run import Executor

__all__ = ["create"]

# _IOW('$', 8, __u32) and _IO('$', 0) of linux/perf_event.h, on x86-64 and aarch64.
PERF_EVENT_IOC_SET_BPF = 0x40042408
PERF_EVENT_IOC_ENABLE = 0x2400
TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
EVENT_SOURCES = "/sys/bus/event_source/devices"


def create(executor: Executor, op: LinkCreate, program: int) -> None:
    """Do what ``op`` says; the link's fd goes to its slot, or the journal gets the attachment."""
    how = _HOW.get(op.how)
    if how is None:
        raise PlanError(f"{op.how!r} is no way to attach; there are: {', '.join(_HOW)}")
    how(executor, op, program)


def _open(path: object, flags: int = os.O_RDONLY) -> int:
    if not isinstance(path, str):
        raise PlanError(f"a path is needed as the target, not {path!r}")
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise fail("open", error.errno or 2, path=path) from None


def _link(executor: Executor, op: LinkCreate, program: int, target: int, **more: int) -> None:
    fields = {**dict(op.extra), **more}
    fd = bpf.link_create(program, target, op.attach_type, flags=op.flags, **fields)
    executor._fill_slot(op.dst, fd)


def _path(executor: Executor, op: LinkCreate, program: int) -> None:
    target = _open(op.target)
    try:
        _link(executor, op, program, target)
    finally:
        os.close(target)


def _interface(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, str):
        raise PlanError(f"the name of a network interface is needed, not {op.target!r}")
    try:
        with open(f"/sys/class/net/{op.target}/ifindex", encoding="ascii") as file:
            index = int(file.read())
    except OSError as error:
        raise fail("open", error.errno or 2, interface=op.target) from None
    _link(executor, op, program, index)


def _iter(executor: Executor, op: LinkCreate, program: int) -> None:
    if op.target is None:
        _link(executor, op, program, 0)
        return
    if not isinstance(op.target, int):
        raise PlanError("the target of an iterator is a map's fd slot")
    # union bpf_iter_link_info { struct { __u32 map_fd; } map; … }
    info = Pointer(struct.pack("=I", executor.fd(op.target, "map")))
    _link(executor, op, program, 0, iter_info=info.address, iter_info_len=4)


def _struct_ops(executor: Executor, op: LinkCreate, map_fd: int) -> None:
    fd = bpf.link_create(map_fd, 0, abi.BPF_STRUCT_OPS, flags=op.flags)
    executor._fill_slot(op.dst, fd)


def _perf_link(executor: Executor, op: LinkCreate, program: int, event: int) -> None:
    """Attach to a perf event; takes ``event`` over."""
    keep = False
    try:
        try:
            extra = dict(op.extra)
            fd = bpf.link_create(program, event, abi.BPF_PERF_EVENT, flags=op.flags, **extra)
        except KernelError as error:
            # Before 5.15 (b89fbfbb854c) perf events had no links: EINVAL.
            if error.errno != bpf.EINVAL or op.extra:
                raise
            syscalls.ioctl(event, PERF_EVENT_IOC_SET_BPF, program)
            syscalls.ioctl(event, PERF_EVENT_IOC_ENABLE)
            keep = True
            executor._fill_slot(op.dst, event)
            executor.notes.append(f"link {op.name} is a perf event: the kernel has no links here")
            return
        executor._fill_slot(op.dst, fd)
        # The link holds the event; only enabling needs the event's own fd.
        syscalls.ioctl(event, PERF_EVENT_IOC_ENABLE)
    finally:
        if not keep:
            os.close(event)


def _perf_open(fields: dict[str, int | bytes], pid: int = -1, cpu: int = 0) -> int:
    attr = bpf.pack(
        layouts.ATTR_PERF_EVENT,
        layouts.SIZE_PERF_EVENT,
        {"sample_period": 1, "wakeup_events": 1, **fields},
    )
    # PERF_ATTR_SIZE_VER5 (4.1): what kprobes need, and no more for the sake of old kernels.
    bpf.put(attr, layouts.ATTR_PERF_EVENT, "size", 112)
    return syscalls.perf_event_open(attr, pid, cpu)


def _tracepoint(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, str) or op.target.count("/") != 1 or ".." in op.target:
        raise PlanError(f"a tracepoint is 'category/name', not {op.target!r}")
    number = None
    for root in TRACEFS:
        try:
            with open(f"{root}/events/{op.target}/id", encoding="ascii") as file:
                number = int(file.read())
            break
        except OSError as error:
            failed = error
    if number is None:
        mounted = any(os.path.isdir(f"{root}/events") for root in TRACEFS)
        hint = None if mounted else "tracefs is not mounted at /sys/kernel/tracing."
        raise fail("open", failed.errno or 2, tracepoint=op.target, hint=hint)
    event = _perf_open(
        {"type": abi.PERF_TYPE_TRACEPOINT, "config": number, "sample_type": 1 << 10}
    )
    _perf_link(executor, op, program, event)


def _source(device: str) -> tuple[int, int]:
    """(perf type of a dynamic PMU, mask of its "retprobe" bit)."""
    base = f"{EVENT_SOURCES}/{device}"
    try:
        with open(f"{base}/type", encoding="ascii") as file:
            number = int(file.read())
        with open(f"{base}/format/retprobe", encoding="ascii") as file:
            bit = int(file.read().strip().removeprefix("config:"))
    except OSError as error:
        raise fail("open", error.errno or 2, path=base) from None
    return number, 1 << bit


def _probe(executor: Executor, op: LinkCreate, program: int) -> None:
    device = "uprobe" if op.how in ("uprobe", "uretprobe") else "kprobe"
    name, separator, offset = str(op.target).rpartition("+" if device == "kprobe" else ":")
    if not separator:
        name, offset = str(op.target), "0"
    if op.how in ("ksyscall", "kretsyscall"):
        # arch/{x86,arm64}/include/asm/syscall_wrapper.h
        name = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}[syscalls.machine()] + name
    try:
        at = int(offset, 0)
    except ValueError:
        raise PlanError(f"{op.target!r} has no number as its offset") from None
    number, retprobe = _source(device)
    held = Pointer(name.encode("utf-8", "surrogateescape") + b"\0")
    event = _perf_open(
        {
            "type": number,
            "config": retprobe if "ret" in op.how else 0,
            "config1": held.address,
            "config2": at,
        }
    )
    _perf_link(executor, op, program, event)


def _perf_event(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, int):
        raise PlanError("the target is the fd of a perf event")
    _perf_link(executor, op, program, os.dup(op.target))


def _prog_attach(executor: Executor, op: LinkCreate, program: int) -> None:
    target = os.dup(op.target) if isinstance(op.target, int) else _open(op.target)
    try:
        bpf.prog_attach(program, target, op.attach_type, op.flags)
    except BaseException:
        os.close(target)
        raise
    executor.journal.append(("attached", program, target, op.attach_type))


_HOW: dict[str, Callable[[Executor, LinkCreate, int], None]] = {
    "cgroup": _path,
    "netns": _path,
    "interface": _interface,
    "iter": _iter,
    "struct_ops": _struct_ops,
    "tracepoint": _tracepoint,
    "kprobe": _probe,
    "kretprobe": _probe,
    "ksyscall": _probe,
    "kretsyscall": _probe,
    "uprobe": _probe,
    "uretprobe": _probe,
    "perf_event": _perf_event,
    "prog_attach": _prog_attach,
}
