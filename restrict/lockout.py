# SPDX-License-Identifier: BSD-2-Clause
"""Would enforcement take the machine's own programs away? Asked of the kernel, not modelled.

The policy is attached and inert. It is switched on in audit mode for a moment, in which nothing
is denied, and this process maps the files that must stay executable: what the policy would have
denied comes back as events of this process. Then it is switched off again.
"""

from __future__ import annotations

import mmap
import os

from pybpf.errors import PybpfError
from pybpf.kernel.map import Map
from restrict.errors import LockoutError, RestrictError
from restrict.events import Event, Reader
from restrict.guard import Globals, offsets_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = [
    "announce",
    "before_arm",
    "must_run",
    "refuse_lockout",
    "reset_counters",
    "would_deny",
]

_MCL_CURRENT = 1
_SEARCH = ("/usr/bin", "/usr/sbin", "/usr/lib")


def announce() -> list[str]:
    """Make every active dm-verity device report its integrity again; returns their names.

    dm-verity reports when a device is resumed, so a device that was active before the policy
    was attached is suspended and resumed at once. This process' pages are locked in memory
    meanwhile: they may lie on that very device.
    """
    from pybpf.sys.syscalls import syscall
    from restrict.devmapper import CONTROL, DeviceMapper

    if not os.path.exists(CONTROL):
        return []
    done: list[str] = []
    with DeviceMapper() as mapper:
        names = [
            name
            for name, dev in mapper.list()
            if any(t.type == "verity" for t in mapper.table(dev=dev))
        ]
        if not names:
            return []
        syscall("mlockall", _MCL_CURRENT)
        try:
            for name in names:
                try:
                    mapper.suspend(name)
                finally:
                    mapper.resume(name)
                done.append(name)
        finally:
            syscall("munlockall")
    return done


def must_run() -> dict[str, str]:
    """{what it is: path} of files that must stay executable: this program's interpreter, PID 1's
    program, and one file of /usr."""
    found = {"this program": "/proc/self/exe", "PID 1": "/proc/1/exe"}
    for folder in _SEARCH:
        try:
            for entry in os.scandir(folder):
                if entry.is_file(follow_symlinks=False) and entry.stat().st_size:
                    found["/usr"] = entry.path
                    return found
        except OSError:
            continue
    return found


def would_deny(
    obj: Object,
    size: int,
    places: Mapping[str, tuple[int, int]],
    files: Mapping[str, str],
) -> list[tuple[str, str, Event]]:
    """(what, path, event) of each file that the attached, inert policy would not let run.

    Leaves the policy inert, its counters at zero, and the audit flag set: a program that began
    while the switch was on reads that flag afterwards, and may not find it off. ``enable`` stores
    the wanted flag right before it arms.
    """
    fds: list[tuple[str, str, int]] = []
    denied: list[tuple[str, str, Event]] = []
    me = os.getpid()
    seen: list[Event] = []
    bss = obj.maps[".bss"].fileno()
    try:
        for what, path in files.items():
            try:
                fds.append((what, path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
            except OSError as e:
                raise LockoutError(
                    f"{what} cannot be opened, so whether it would run is not known: {e.strerror}.",
                    file=path,
                ) from None
        with Reader(obj.maps["events"].fileno()) as reader:
            with Globals(bss, size, places) as values:
                values.set("audit", 1)
                values.set("armed", 1)
            try:
                for what, path, fd in fds:
                    reader.read(seen.append)  # what others did is not asked for
                    seen.clear()
                    try:
                        length = min(mmap.PAGESIZE, os.fstat(fd).st_size)
                        protection = mmap.PROT_READ | mmap.PROT_EXEC
                        mmap.mmap(fd, length, mmap.MAP_PRIVATE, protection).close()
                    except (OSError, ValueError) as e:
                        raise LockoutError(
                            f"{what} cannot be mapped executable even without the policy: {e}.",
                            file=path,
                        ) from None
                    reader.read(seen.append)
                    mine = [e for e in seen if e.pid == me and e.operation == "mmap"]
                    denied += [(what, path, e) for e in mine[:1]]
            finally:
                with Globals(bss, size, places) as values:
                    values.set("armed", 0)
            reader.read(seen.append)
            lost = reset_counters(obj)
    finally:
        for _what, _path, fd in fds:
            os.close(fd)
    if lost:
        raise RestrictError(
            f"{lost} events were lost while the lock-out check ran, so its answer is not known.",
            hint="Try again when the machine is quieter.",
        )
    return denied


def reset_counters(obj: Object) -> int:
    """Set the counters to zero; returns how many events were dropped until now."""
    lost = 0
    # A handle without the object's types: values as bytes.
    with Map(obj.maps["counters"].dup(), "counters") as counters:
        for key in range(counters.max_entries):
            raw = key.to_bytes(4, "little")
            value = counters.lookup(raw)
            lost += int.from_bytes(value[24:32], "little")
            counters.update(raw, bytes(len(value)))
    return lost


def refuse_lockout(obj: Object, size: int, places: Mapping[str, tuple[int, int]]) -> None:
    """Raise LockoutError if something of ``must_run`` would be denied."""
    try:
        denied = would_deny(obj, size, places, must_run())
    except PybpfError as e:
        raise e.at(check="lock-out") from None
    if denied:
        raise LockoutError(
            "enforcement would lock this machine out: "
            + "; ".join(
                f"{what} ({os.path.realpath(path)}) is on {e.filesystem} {e.device}: {e.reason}"
                for what, path, e in denied
            )
            + ".",
            hint="Run it from a signed dm-verity device, or use --force, or --audit to watch.",
        )


def before_arm(
    plan: Plan, *, resumed: bool = False, refuse: bool = True
) -> Callable[[Object], None]:
    """What ``fsaccess.enable`` calls between attach and arm.

    resumed: first let devices that were active before the policy report themselves.
    refuse: raise LockoutError if the machine would be locked out.
    """
    places = offsets_of(plan.variables)

    def check(obj: Object) -> None:
        if resumed:
            announce()
        if refuse:
            refuse_lockout(obj, obj.maps[".bss"].value_size, places)

    return check
