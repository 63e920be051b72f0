# SPDX-License-Identifier: BSD-2-Clause
"""The execution policy's life: loaded inert, guarded, armed by one store, handed on or ended.

Order: load → settings into .bss → attach (nothing is denied yet) → let devices that are active
already report themselves → refuse a lock-out → pin the status iterator → fill the guard with the
ids that the kernel gave → arm → drop every handle that is not needed any more. If any step before
``armed`` fails, everything is undone.

Needs Linux 6.12 and what ``restrict check`` asks for.
"""

from __future__ import annotations

import errno
import os
import stat

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.sys import abi as bpf_abi
from pybpf.sys import bpf
from restrict import abi
from restrict.errors import KernelError, RestrictError
from restrict.guard import Globals, offsets_of, start_ticks
from restrict.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, in_initramfs, mount, unmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = [
    "PIN",
    "STATUS",
    "Policy",
    "default_plan",
    "enable",
    "initramfs_device",
    "load_plan",
    "read_status",
    "trusted_folder",
]

PIN = "/sys/fs/bpf/restrict/fsaccess"
_PLAN = "/usr/lib/restrict/fsaccess.plan"
STATUS = "fsaccess_status"
SYSCTL = "fsaccess_sysctl"
_LINKS_LEAST = 8  # a plan with fewer attached programs is not this policy


def default_plan() -> str:
    """The frozen policy: the administrator's, else the one that came with restrict."""
    here = os.path.dirname(os.path.abspath(__file__))
    for path in (_PLAN, f"{here}/objects/fsaccess.plan", f"{here}/../bpf/objects/fsaccess.plan"):
        if os.path.exists(path):
            return os.path.normpath(path)
    return _PLAN


def load_plan(path: str) -> Plan:
    """Read a frozen Plan (``restrict bundle``). Raises FormatError or KernelError."""
    from pybpf.plan.frozen import from_bytes

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as e:
        raise KernelError(
            f"the plan cannot be read: {os.strerror(e.errno or 0)}.",
            errno=e.errno or 0,
            call="open",
            file=path,
            hint="Make it with `restrict bundle -o FILE`.",
        ) from None
    try:
        return from_bytes(data)
    except PybpfError as e:
        raise e.at(file=path) from None


def read_status(path: str = PIN) -> str | None:
    """The text of the pinned status iterator; None if nothing is pinned there.

    Raises RestrictError where another than root could have put the file there.
    """
    try:
        trusted_folder(os.path.dirname(path))
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return file.read().decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise RestrictError(f"the status cannot be read: {e.strerror}.", file=path) from None


def initramfs_device() -> int:
    """The kernel's number of the initramfs' superblock.

    It is that of the file this process runs, not of a path, which a mount could cover.
    Raises RestrictError unless / is an initramfs and the program is in it.
    """
    if not in_initramfs():
        raise RestrictError(
            "/ is no initramfs, so there is none to trust.",
            hint="Enable without trust in the initramfs.",
        )
    here = os.stat("/proc/self/exe").st_dev
    if here != os.stat("/").st_dev:
        raise RestrictError("this program is not on the initramfs, so trusting it is no help.")
    return abi.kernel_dev(here)


class Policy:
    """An attached policy and the handles that keep it: links, .bss, events.

    ``close`` ends enforcement (unless something else holds the links). As a context manager it
    closes at the end of the block.
    """

    __slots__ = ("bss", "bss_size", "events", "links", "places", "status", "status_pin")

    def __init__(
        self,
        links: dict[str, Link],
        bss: Map,
        bss_size: int,
        events: Map,
        places: Mapping[str, tuple[int, int]],
        status: Link | None = None,
        status_pin: str | None = None,
    ) -> None:
        self.links = links
        self.bss = bss
        self.bss_size = bss_size
        self.events = events
        self.places = dict(places)
        self.status = status
        self.status_pin = status_pin

    def globals(self) -> Globals:
        """The policy's globals, mapped inside a ``with`` block."""
        return Globals(self.bss.fileno(), self.bss_size, self.places)

    @property
    def armed(self) -> bool:
        with self.globals() as values:
            return bool(values.get("armed"))

    def arm(self, *, audit: bool = False) -> None:
        """Switch the policy on; audit: nothing is denied, only reported."""
        with self.globals() as values:
            values.set("audit", int(audit))
            values.set("armed", 1)

    def close_window(self) -> int:
        """Withdraw trust in the initramfs; returns the device number that was trusted.

        Must happen before the initramfs' superblock goes: anonymous device numbers are reused at
        once, lowest first.
        """
        with self.globals() as values:
            before = values.get("initramfs_dev")
            values.set("initramfs_dev", 0)
        return before

    def handles(self) -> list[Link | Map]:
        """Everything that must stay open, in a fixed order."""
        more: list[Link | Map] = [self.bss, self.events]
        if self.status is not None:
            more.append(self.status)
        return [*self.links.values(), *more]

    def close(self) -> None:
        """Detach: unpin the status, then close the links, then the maps."""
        if self.status_pin is not None and self.status is not None:
            _unpin(self.status_pin)
        for handle in (*self.links.values(), self.status, self.events, self.bss):
            if handle is not None:
                handle.close()

    def release(self) -> None:
        """Close the handles of a policy that something else keeps; unpin nothing."""
        for handle in self.handles():
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _unpin(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # somebody removed it already: nothing is left to undo
        pass
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass


def attach_sysctl(obj: Object, name: str = SYSCTL) -> Link:
    """Attach the guard of kernel.ftrace_enabled to the root cgroup.

    Through a mount of our own, because in early boot there is none, and only for a moment.
    """
    folder = f"/run/restrict-cgroup-{os.getpid()}"
    try:
        os.mkdir(folder, 0o700)
    except OSError as e:
        raise KernelError(
            f"no directory to mount cgroup2 on: {os.strerror(e.errno or 0)}.",
            errno=e.errno or 0,
            call="mkdir",
            path=folder,
            hint="Mount a tmpfs on /run.",
        ) from None
    try:
        mount("cgroup2", folder, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            unmount(folder, lazy=True)
    finally:
        os.rmdir(folder)
    try:
        program = obj.programs[name].fileno()
        return Link(bpf.link_create(program, fd, bpf_abi.BPF_CGROUP_SYSCTL), name)
    except KernelError as e:
        raise e.at(program=name, cgroup="/") from None
    finally:
        os.close(fd)


def trusted_folder(folder: str) -> None:
    """Refuse a directory in which somebody else may put files: bpffs lets everybody make one,
    and a symbolic link there would show another status."""
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
        raise RestrictError(
            "it is no directory that root alone can write to.", path=folder, hint="Remove it."
        )


def _pin_status(obj: Object, path: str) -> Link:
    """Create the status iterator's link and pin it where everybody may read it."""
    program = obj.programs[STATUS]
    link = Link(bpf.link_create(program.fileno(), 0, bpf_abi.BPF_TRACE_ITER), STATUS)
    try:
        folder = os.path.dirname(path)
        try:
            os.mkdir(folder, 0o711)
        except FileExistsError:
            trusted_folder(folder)
        # A pin of an earlier owner that is gone shows a policy that is no longer attached.
        if os.path.lexists(path):
            os.unlink(path)
        link.pin(path)
        os.chmod(path, 0o444)
    except OSError as e:
        link.close()
        raise KernelError(
            f"the status cannot be pinned: {os.strerror(e.errno or 0)}.",
            errno=e.errno or 0,
            call="BPF_OBJ_PIN",
            path=path,
            hint="Mount bpffs: mount -t bpf bpf /sys/fs/bpf."
            if e.errno in (errno.ENOENT, errno.EPERM, errno.ENOTDIR)
            else None,
        ) from None
    except BaseException:
        link.close()
        raise
    return link


def enable(
    plan: Plan,
    *,
    audit: bool = False,
    owner: int | None = None,
    owner_ticks: int | None = None,
    initramfs_dev: int = 0,
    status_pin: str | None = PIN,
    settings: Mapping[str, int] | None = None,
    before_arm: Callable[[Object], None] | None = None,
    pin: Callable[[Object, dict[str, Link], Link | None], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Policy:
    """Load, attach, guard and arm; the returned Policy owns everything that stays open.

    owner: tgid that passes the guard and that nobody may attach to (default: this process).
    owner_ticks: when it started, in clock ticks since boot (default: asked of /proc).
    initramfs_dev: kernel number of a superblock to trust until ``close_window`` (0: none).
    settings: further globals, by name (kept, generation, the deputy).
    before_arm: called with the attached, inert object; what it raises stops and undoes all.
    pin: called with the object, its links and the status' link, to make what keeps them without
    this process; what it made is its own to undo if something fails later.
    step: told the name of each step before it begins.

    Raises RestrictError, KernelError, VerifierError or PlanError with a place ``step``; nothing
    is left behind then.
    """
    from pybpf.plan.run import run

    name = "load"
    obj: Object | None = None
    status: Link | None = None
    sysctl: Link | None = None
    pinned = False
    try:
        step(name)
        tgid = os.getpid() if owner is None else owner
        places = offsets_of(plan.variables)
        ticks = owner_ticks
        if ticks is None:
            ticks = 0 if tgid == 1 else start_ticks(tgid)
        obj = run(plan)
        bss = obj.maps[".bss"]
        size = int(bss.info()["value_size"])

        name = "settings"
        step(name)
        with Globals(bss.fileno(), size, places) as values:
            if values.get("armed"):
                raise RestrictError("the globals of a new policy are not zero.", map=".bss")
            values.set("initramfs_dev", initramfs_dev)
            values.set("owner_start_ticks", ticks)
            values.set("owner_tgid", tgid)
            for key, value in (settings or {}).items():
                values.set(key, value)

        name = "attach"
        step(name)
        obj.attach()
        links = dict(obj.links)
        if SYSCTL in obj.programs:
            sysctl = links[SYSCTL] = attach_sysctl(obj)
        if len(links) < _LINKS_LEAST:
            raise RestrictError(
                f"the plan attached {len(links)} programs, which is not the whole policy."
            )

        if before_arm is not None:
            name = "lock-out"
            step(name)
            before_arm(obj)

        if status_pin is not None and STATUS in obj.programs:
            name = "status"
            step(name)
            status = _pin_status(obj, status_pin)
            pinned = True

        if pin is not None:
            name = "pins"
            step(name)
            pin(obj, links, status)

        name = "guard"
        step(name)
        link_ids = [link.id for link in links.values()]
        if status is not None:
            link_ids.append(status.id)
        with Globals(bss.fileno(), size, places) as values:
            values.set_ids("guard_map_ids", [m.id for m in obj.maps.values()])
            values.set_ids("guard_program_ids", [p.id for p in obj.programs.values()])
            values.set_ids("guard_link_ids", link_ids)

        # From here on nothing may fail: duplicate handles first, then the one store.
        policy = Policy(
            {n: Link(link.dup(), n) for n, link in links.items()},
            Map(bss.dup(), ".bss"),
            size,
            Map(obj.maps["events"].dup(), "events"),
            places,
            status,
            status_pin if status is not None else None,
        )
        try:
            name = "arm"
            step(name)
            policy.arm(audit=audit)
        except BaseException:
            policy.close()
            raise
    except BaseException as e:
        if pinned and status_pin is not None:
            _unpin(status_pin)
        for link in (status, sysctl):
            if link is not None:
                link.close()
        if obj is not None:
            obj.close()
        if isinstance(e, PybpfError):
            raise e.at(policy="fsaccess", step=name) from None
        raise
    if sysctl is not None:
        sysctl.close()
    obj.close()  # the duplicates keep what is needed; programs and other maps live through links
    return policy
