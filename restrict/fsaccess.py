# SPDX-License-Identifier: BSD-2-Clause
"""The execution policy's life: loaded inert, guarded, armed by one store, handed on or ended.

Order: load → settings into .bss → attach (nothing is denied yet) → let devices that are active
already report themselves → refuse a lock-out → pin the status iterator → fill the guard with the
ids that the kernel gave → arm → drop every handle that is not needed any more. If any step before
``armed`` fails, everything is undone.

Needs Linux 6.12 and what ``restrict check`` asks for.
"""

from __future__ import annotations

import os

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from restrict import abi
from restrict.errors import RestrictError
from restrict.guard import Globals, offsets_of, ticks_of
from restrict.mounts import in_initramfs
from restrict.policy import attach_sysctl, load_plan, pin_status

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
    "enable",
    "attach_links",
    "initramfs_device",
    "load_plan",
]

PIN = "/sys/fs/bpf/restrict/fsaccess"
STATUS = "fsaccess_status"
SYSCTL = "fsaccess_sysctl"
_LINKS_LEAST = 8  # a plan with fewer attached programs is not this policy


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

    def disown(self) -> None:
        """Nobody is owner or deputy from now on, until the next boot.

        For a process that goes on as a program which knows nothing of the policy: root can make
        such a PID 1 act on files of his choice (systemd unlinks a service's PIDFile=).
        """
        with self.globals() as values:
            values.set("deputy_tgid", 0)
            values.set("owner_tgid", 0)

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


def attach_links(obj: Object) -> dict[str, Link]:
    """Attach every program by a link. Raises RestrictError if that is not the whole policy."""
    obj.attach()
    links = dict(obj.links)
    if SYSCTL in obj.programs:
        links[SYSCTL] = attach_sysctl(obj, SYSCTL)
    if len(links) < _LINKS_LEAST:
        raise RestrictError(
            f"the plan attached {len(links)} programs, which is not the whole policy."
        )
    return links


def enable(
    plan: Plan,
    *,
    audit: bool = False,
    owner: int | None = None,
    owner_ticks: int | None = None,
    initramfs_dev: int = 0,
    status_pin: str | None = PIN,
    settings: Mapping[str, int] | None = None,
    attach: Callable[[Object], dict[str, Link]] = attach_links,
    before_arm: Callable[[Object], None] | None = None,
    pin: Callable[[Object, dict[str, Link], Link | None], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Policy:
    """Load, attach, guard and arm; the returned Policy owns everything that stays open.

    owner: tgid that passes the guard and that nobody may attach to (default: this process).
    owner_ticks: when it started, in clock ticks since boot (default: asked of /proc).
    initramfs_dev: kernel number of a superblock to trust until ``close_window`` (0: none).
    settings: further globals, by name (kept, generation, the deputy).
    attach: attaches the programs; gives the links, none where they stay without one.
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
    links: dict[str, Link] = {}
    pinned = False
    try:
        step(name)
        tgid = os.getpid() if owner is None else owner
        places = offsets_of(plan.variables)
        ticks = ticks_of(tgid) if owner_ticks is None else owner_ticks
        obj = run(plan)
        bss = obj.maps[".bss"]
        size = bss.value_size

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
        links = attach(obj)

        if before_arm is not None:
            name = "lock-out"
            step(name)
            before_arm(obj)

        if status_pin is not None and STATUS in obj.programs:
            name = "status"
            step(name)
            status = pin_status(obj, STATUS, status_pin)
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
        for link in (*links.values(), status):
            if link is not None:
                link.close()
        if obj is not None:
            obj.close()
        if isinstance(e, PybpfError):
            raise e.at(policy="fsaccess", step=name) from None
        raise
    for link in links.values():
        link.close()
    obj.close()  # the duplicates keep what is needed; programs and other maps live through links
    return policy
