# SPDX-License-Identifier: BSD-2-Clause
"""Attaching by perf events and to many functions at once: the part of attaching that probes.

A kprobe or uprobe alone is a perf event with a link (5.15; before, the event itself holds the
program). A multi probe is one link with many places: names of kernel functions (5.18) or offsets
in one file (6.6). A tracing program of many functions (7.1) takes their ids in BTF.
"""

from __future__ import annotations

import posix
import struct

from pybpf.errors import KernelError, PlanError
from pybpf.sys import abi, bpf, layouts, syscalls
from pybpf.sys.syscalls import Pointer, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.plan.ops import LinkCreate
    from pybpf.plan.run import Executor

__all__ = ["HOW"]

# _IOW('$', 8, __u32) and _IO('$', 0) of linux/perf_event.h, on x86-64 and aarch64.
PERF_EVENT_IOC_SET_BPF = 0x40042408
PERF_EVENT_IOC_ENABLE = 0x2400
TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
EVENT_SOURCES = "/sys/bus/event_source/devices"
# Most functions that one kprobe.multi link takes (kernel/trace/bpf_trace.c: MAX_KPROBE_MULTI_CNT).
MOST_FUNCTIONS = 1 << 20


def _perf_link(executor: Executor, op: LinkCreate, program: int, event: int) -> None:
    """Attach to a perf event; takes ``event`` over."""
    keep = False
    extra = dict(op.extra)
    extra.pop("pid", None)
    try:
        try:
            fd = bpf.link_create(program, event, abi.BPF_PERF_EVENT, flags=op.flags, **extra)
        except KernelError as error:
            # Before 5.15 (b89fbfbb854c) perf events had no links: EINVAL.
            if error.errno != bpf.EINVAL or extra:
                raise
            syscalls.ioctl(event, PERF_EVENT_IOC_SET_BPF, program)
            syscalls.ioctl(event, PERF_EVENT_IOC_ENABLE)
            keep = True
            executor.fill_slot(op.dst, event)
            executor.notes.append(f"link {op.name} is a perf event: the kernel has no links here")
            return
        executor.fill_slot(op.dst, fd)
        # The link holds the event; only enabling needs the event's own fd.
        syscalls.ioctl(event, PERF_EVENT_IOC_ENABLE)
    finally:
        if not keep:
            posix.close(event)


def _perf_open(fields: dict[str, int | bytes], pid: int = -1) -> int:
    attr = bpf.pack(
        layouts.ATTR_PERF_EVENT,
        layouts.SIZE_PERF_EVENT,
        {"sample_period": 1, "wakeup_events": 1, **fields},
    )
    # PERF_ATTR_SIZE_VER5 (4.1): what kprobes need, and no more for the sake of old kernels.
    bpf.put(attr, layouts.ATTR_PERF_EVENT, "size", 112)
    # A probe of all processes is opened on one CPU and fires on each.
    return syscalls.perf_event_open(attr, pid, 0 if pid < 0 else -1)


def _tracefs(name: str, **where: str) -> bytes:
    failed = 2
    for root in TRACEFS:
        try:
            with open(f"{root}/{name}", "rb") as file:
                return file.read()
        except OSError as error:
            failed = error.errno or 2
    from os.path import isdir

    mounted = any(isdir(f"{root}/events") for root in TRACEFS)
    hint = (
        None
        if mounted
        else "tracefs is not mounted at /sys/kernel/tracing (mount -t tracefs tracefs …), or the "
        "kernel has none (CONFIG_TRACING)."
    )
    raise fail("open", failed, hint=hint, **where)


def _tracepoint(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, str) or op.target.count("/") != 1 or ".." in op.target:
        raise PlanError(f"a tracepoint is 'category/name', not {op.target!r}")
    number = int(_tracefs(f"events/{op.target}/id", tracepoint=op.target))
    event = _perf_open({"type": abi.PERF_TYPE_TRACEPOINT, "config": number, "sample_type": 1 << 10})
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
        from os.path import isdir

        hint = (
            f"This kernel has no perf events of {device}s (CONFIG_{device.upper()}_EVENTS, 4.17)."
            if isdir(EVENT_SOURCES)
            else "sysfs is not mounted at /sys."
        )
        raise fail("open", error.errno or 2, hint=hint, path=base) from None
    return number, 1 << bit


def _number(text: str, target: object) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise PlanError(f"{target!r} has no number as its offset") from None


def _user_place(op: LinkCreate) -> tuple[str, str]:
    """(path of the file, what stands behind its colon)."""
    name, colon, place = str(op.target).rpartition(":")
    if not isinstance(op.target, str) or not colon or not name or not place:
        raise PlanError(
            f"a place in a program is 'path:function', 'path:function+offset' or 'path:offset', "
            f"not {op.target!r}"
        )
    from pybpf.kernel.symbols import find_file

    return find_file(name), place


def _kprobe(executor: Executor, op: LinkCreate, program: int) -> None:
    name, plus, offset = str(op.target).partition("+")
    if op.how in ("ksyscall", "kretsyscall"):
        # arch/{x86,arm64}/include/asm/syscall_wrapper.h
        name = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}[syscalls.machine()] + name
    _probe(executor, op, program, "kprobe", name, _number(offset, op.target) if plus else 0)


def _uprobe(executor: Executor, op: LinkCreate, program: int) -> None:
    path, place = _user_place(op)
    if place[0].isdigit():
        at = _number(place, op.target)
    else:
        from pybpf.kernel.symbols import function_offsets

        function, plus, offset = place.partition("+")
        if set("*?") & set(function):
            raise PlanError("a pattern of functions needs a program of section uprobe.multi")
        at = function_offsets(path, function)[function]
        at += _number(offset, op.target) if plus else 0
    _probe(executor, op, program, "uprobe", path, at)


def _probe(
    executor: Executor, op: LinkCreate, program: int, device: str, name: str, at: int
) -> None:
    number, retprobe = _source(device)
    held = Pointer(name.encode("utf-8", "surrogateescape") + b"\0")
    try:
        event = _perf_open(
            {
                "type": number,
                "config": retprobe if "ret" in op.how else 0,
                "config1": held.address,
                "config2": at,
            },
            pid=dict(op.extra).get("pid", -1),
        )
    except KernelError as error:
        raise error.at(target=op.target)  # noqa: B904
    _perf_link(executor, op, program, event)


def _perf_event(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, int):
        raise PlanError("the target is the fd of a perf event")
    _perf_link(executor, op, program, posix.dup(op.target))


def _cookies(extra: dict[str, int], count: int) -> Pointer:
    """One cookie for each place, or nothing."""
    cookie = extra.pop("cookie", 0)
    return Pointer(struct.pack(f"={count}Q", *[cookie] * count) if cookie else None)


def _functions(op: LinkCreate, *, modules: bool = True) -> list[bytes]:
    """The function named, or those that match a pattern among what ftrace can hook."""
    if not isinstance(op.target, str) or not op.target:
        raise PlanError(f"a function's name or a pattern is needed, not {op.target!r}")
    if not set("*?") & set(op.target):
        return [op.target.encode()]
    from pybpf.kernel.symbols import matches

    # "function" or "function [module]", a line each; one function may be there twice.
    lines = _tracefs("available_filter_functions", pattern=op.target).splitlines()
    names = {
        name
        for line in lines
        if matches(op.target, (name := line.split(b" ")[0]).decode())
        and (modules or b"[" not in line)
    }
    if not names or len(names) > MOST_FUNCTIONS:
        raise PlanError(f"{len(names)} functions of the kernel match {op.target!r}")
    return sorted(names)


def _tracing_multi(executor: Executor, op: LinkCreate, program: int) -> None:
    """Functions go to the kernel by their ids in vmlinux BTF; of those that match a pattern the
    ones that BTF does not describe are left out."""
    from pybpf.kernel import btf_lookup

    names = _functions(op, modules=False)
    answers = btf_lookup.resolve([(name.decode(), abi.BTF_KIND_FUNC, None) for name in names])
    try:
        ids = sorted({found[1] for found in answers if found is not None and not found[0]})
    finally:
        for found in answers:
            if found is not None and found[0]:
                posix.close(found[0])
    if not ids:
        raise PlanError(
            f"vmlinux BTF describes no function {op.target!r}.",
            hint="A function of a module, or one that was inlined, cannot be traced so.",
        )
    numbers = Pointer(struct.pack(f"={len(ids)}I", *ids))
    extra = dict(op.extra)
    cookies = _cookies(extra, len(ids))
    extra |= {
        "tracing_multi.ids": numbers.address, "tracing_multi.cnt": len(ids),
        "tracing_multi.cookies": cookies.address,
    }  # fmt: skip
    _multi(executor, op, program, extra)


def _kprobe_multi(executor: Executor, op: LinkCreate, program: int) -> None:
    """Names go to the kernel as they are."""
    names = _functions(op)
    texts = [Pointer(name + b"\0") for name in names]
    symbols = Pointer(struct.pack(f"={len(texts)}Q", *(text.address for text in texts)))
    extra = dict(op.extra)
    cookies = _cookies(extra, len(names))
    returning = abi.BPF_F_KPROBE_MULTI_RETURN if op.how == "kretprobe_multi" else 0
    extra |= {
        "kprobe_multi.flags": returning, "kprobe_multi.cnt": len(names),
        "kprobe_multi.syms": symbols.address, "kprobe_multi.cookies": cookies.address,
    }  # fmt: skip
    _multi(executor, op, program, extra)


def _uprobe_multi(executor: Executor, op: LinkCreate, program: int) -> None:
    path, place = _user_place(op)
    if place[0].isdigit():
        offsets = [_number(place, op.target)]
    else:
        from pybpf.kernel.symbols import function_offsets

        offsets = sorted(set(function_offsets(path, place).values()))
    file = Pointer(path.encode("utf-8", "surrogateescape") + b"\0")
    places = Pointer(struct.pack(f"={len(offsets)}Q", *offsets))
    extra = dict(op.extra)
    cookies = _cookies(extra, len(offsets))
    returning = abi.BPF_F_UPROBE_MULTI_RETURN if op.how == "uretprobe_multi" else 0
    extra |= {
        "uprobe_multi.path": file.address, "uprobe_multi.offsets": places.address,
        "uprobe_multi.cnt": len(offsets), "uprobe_multi.flags": returning,
        "uprobe_multi.cookies": cookies.address, "uprobe_multi.pid": extra.pop("pid", 0),
    }  # fmt: skip
    _multi(executor, op, program, extra)


def _multi(executor: Executor, op: LinkCreate, program: int, extra: dict[str, int]) -> None:
    try:
        fd = bpf.link_create(program, 0, op.attach_type, flags=op.flags, **extra)
    except KernelError as error:
        raise error.at(target=op.target)  # noqa: B904
    executor.fill_slot(op.dst, fd)


HOW: dict[str, Callable[[Executor, LinkCreate, int], None]] = {
    "tracepoint": _tracepoint,
    "kprobe": _kprobe,
    "kretprobe": _kprobe,
    "ksyscall": _kprobe,
    "kretsyscall": _kprobe,
    "uprobe": _uprobe,
    "uretprobe": _uprobe,
    "perf_event": _perf_event,
    "kprobe_multi": _kprobe_multi,
    "kretprobe_multi": _kprobe_multi,
    "kprobe_session": _kprobe_multi,
    "tracing_multi": _tracing_multi,
    "uprobe_multi": _uprobe_multi,
    "uretprobe_multi": _uprobe_multi,
    "uprobe_session": _uprobe_multi,
}
