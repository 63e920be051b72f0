# SPDX-License-Identifier: BSD-2-Clause
"""A bpf filesystem whose policies nobody but the owner can unload (bpf/pins.bpf.c).

    /sys/fs/bpf/restrict          mount point of a bpffs of its own, guarded as a whole
        pins                      status of this policy, readable by all
        guard/                    its own links and maps
        …                         whatever the owner pins there: nothing more need be done for it

The owner is a process (tgid and start time). Once it has ended nobody can take anything away until
the machine is started again. The owner may appoint a deputy. Process 1 is a good owner if it is an
init of ours; one that acts on others' orders is none (``Pins.disown``).

Needs Linux 6.12, `bpf` among the security modules, and a mounted bpf filesystem.
"""

from __future__ import annotations

import errno
import os
import struct

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from restrict.abi import KEPT_BY, PINS_FILESYSTEM, PINS_KINDS, kernel_dev
from restrict.errors import KernelError, RestrictError, system_error
from restrict.guard import COMMON, Globals, offsets_of, ticks_of
from restrict.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, mounts, unmount
from restrict.policy import attach_sysctl, default_plan, load_plan, pin_name, trusted_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = [
    "FOLDER", "LABEL", "MOST_FILESYSTEMS", "Pins", "filesystem", "install",
    "load_plan", "open_pinned",
]  # fmt: skip

FOLDER = "/sys/fs/bpf/restrict"
LABEL = "security.bpf.restrict"  # extended attribute of a guarded filesystem's root, 7.x
MOST_FILESYSTEMS = 4
STATUS, SYSCTL = "pins_status", "pins_sysctl"
_GUARD, STATUS_PIN = "guard", "pins"
_MAPS = ("pins_ids", "counters", "events", ".bss")
_GLOBALS = {**COMMON, "learn": 4, "strict": 4}


def _pin(name: str) -> str:
    return f"{_GUARD}/map_{pin_name(name)}"


def is_bpf(path: str | int) -> bool:
    """Whether a file, by path or fd, is on a bpf filesystem."""
    device = os.stat(path).st_dev
    return any(entry.dev == device and entry.fstype == "bpf" for entry in mounts())


def filesystem(path: str = FOLDER) -> bool:
    """Make sure that a bpf filesystem of its own is mounted at ``path``; True if mounted now.

    The parent directory must exist. Raises RestrictError where an ordinary directory is there
    with something in it, which the mount would hide, or somebody else can write to it.
    """
    parent = os.path.dirname(path.rstrip("/"))
    try:
        above = os.stat(parent).st_dev
        try:
            os.mkdir(path, 0o711)
        except FileExistsError:
            trusted_folder(path)
        if os.stat(path).st_dev != above:
            if is_bpf(path):
                return False
            raise RestrictError("another filesystem than bpf is mounted there.", path=path)
        if os.listdir(path):
            raise RestrictError(
                "it is a directory with something in it, which a mount would hide.", path=path,
                hint="Take those pins away, or install the pins policy before them.",
            )  # fmt: skip
    except OSError as error:
        raise system_error(
            "no directory to mount a bpf filesystem on", error, "mkdir", path=path,
            hint="Its parent must exist: mount -t bpf bpf /sys/fs/bpf.",
        ) from None  # fmt: skip
    mount("bpf", path, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0711")
    return True


class Pins:
    """The policy for its owner or deputy; closing it ends nothing. A context manager.

    notes: what the caller should know, one sentence each.
    """

    __slots__ = ("_bss", "_filesystems", "events", "ids", "notes", "path", "places", "size")

    def __init__(
        self,
        path: str,
        bss: Map,
        ids: Map,
        events: Map,
        places: Mapping[str, tuple[int, int]],
        filesystems: int,
    ) -> None:
        self.path = path
        self._bss = bss
        self.ids = ids
        self.events = events
        self.places = dict(places)
        self.size = bss.value_size
        self._filesystems = filesystems
        self.notes: list[str] = []

    @property
    def guard(self) -> str:
        """The directory of the policy's own pins."""
        return f"{self.path}/{_GUARD}"

    def globals(self) -> Globals:
        """The policy's globals, mapped inside a ``with`` block."""
        return Globals(self._bss.fileno(), self.size, self.places)

    # ── filesystems ──

    def filesystems(self) -> list[int]:
        """Device numbers (the kernel's) of the guarded filesystems; 0 is a free entry."""
        raw = self._bss.lookup(0)
        found = []
        for i in range(MOST_FILESYSTEMS):
            superblock, _ns, _magic, device, _ = PINS_FILESYSTEM.unpack_from(
                raw, self._filesystems + i * PINS_FILESYSTEM.size
            )
            found.append(device if superblock else 0)
        return found

    def protect(self, path: str | int) -> bool:
        """Guard the bpf filesystem that ``path`` (or an fd) is on; False: it is guarded already.

        Its oldest mount in this process' mount namespace is the one that is kept. Raises
        RestrictError if it is no bpf filesystem or four are guarded.
        """
        place = str(path)
        try:
            device = kernel_dev(os.stat(path).st_dev)
        except OSError as error:
            raise system_error("it cannot be looked at", error, "stat", path=place) from None
        present = self.filesystems()
        if device in present:
            return False
        if not is_bpf(path):
            raise RestrictError("it is on no bpf filesystem.", path=place)
        if 0 not in present:
            raise RestrictError(
                f"{MOST_FILESYSTEMS} filesystems are guarded, which is the most.", path=place
            )
        with self.globals() as values:
            values.set("learn", present.index(0) + 1)
            try:
                os.statvfs(path)
                learnt = values.get("learn") == 0
            finally:
                values.set("learn", 0)
        if not learnt or device not in self.filesystems():
            raise RestrictError(
                "the programs did not see the filesystem.", path=place,
                hint="Only the owner and its deputy may protect one.",
            )  # fmt: skip
        self._label(path)
        if os.stat("/proc/self/ns/mnt").st_ino != os.stat("/proc/1/ns/mnt").st_ino:
            self.notes.append(
                f"{place} is kept by a mount in this process' mount namespace, which ends with "
                "its last process; process 1 has another."
            )
        return True

    @staticmethod
    def _label(path: str | int) -> None:
        """Mark the root for whoever looks; 6.12's bpffs takes no such attribute."""
        try:
            os.setxattr(path, LABEL, b"pins")
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise system_error(
                    "its root cannot be marked", error, "setxattr", path=str(path)
                ) from None

    # ── ids ──

    @staticmethod
    def _key(kind: str, ident: int) -> bytes:
        if kind not in PINS_KINDS:
            raise RestrictError(f"{kind!r} is none of {', '.join(PINS_KINDS)}.")
        if not 0 < ident <= 0xFFFFFFFF:
            raise RestrictError(f"{ident} is no id of a {kind}.")
        return struct.pack("=Q", PINS_KINDS.index(kind) + 1 << 32 | ident)

    def register(self, kind: str, ident: int) -> None:
        """No fd of this map, program or link for others by its id (nor a detach of the link).

        kind: "map", "program" or "link". At most 4,096 ids. Raises RestrictError, KernelError.
        """
        self.ids.update(self._key(kind, ident), 1)

    def unregister(self, kind: str, ident: int) -> bool:
        """Take ``register`` back; False: it was not registered."""
        return self.ids.delete(self._key(kind, ident))

    def registered(self) -> dict[str, list[int]]:
        """{kind: ids}, sorted."""
        found: dict[str, list[int]] = {kind: [] for kind in PINS_KINDS}
        for raw in self.ids.raw_keys():
            (key,) = struct.unpack("=Q", raw)
            found[PINS_KINDS[(key >> 32) - 1]].append(key & 0xFFFFFFFF)
        return {kind: sorted(idents) for kind, idents in found.items()}

    # ── owner ──

    def delegate(self, pid: int | None) -> None:
        """Give a process (tgid in the initial pid namespace) the owner's rights beside the owner;
        None takes them back. Raises RestrictError if there is no such process."""
        ticks = 0 if pid is None else ticks_of(pid)
        with self.globals() as values:
            # Never the new number with the old time: that could be another process.
            values.set("deputy_tgid", 0)
            values.set("deputy_start_ticks", ticks)
            values.set("deputy_tgid", pid or 0)

    def disown(self) -> None:
        """Nobody is owner or deputy from now on; only a reboot unloads it.

        For an owner that does what others ask of it: systemd as process 1 unlinks what a unit
        names (PIDFile=, Symlinks= with RemoveOnStop=), and what the owner does is allowed.
        """
        with self.globals() as values:
            values.set("deputy_tgid", 0)
            values.set("owner_tgid", 0)

    def disarm(self) -> None:
        """Let everybody do everything again; ``arm`` takes it back."""
        with self.globals() as values:
            values.set("armed", 0)

    def arm(self, *, audit: bool = False) -> None:
        """Switch the policy on; audit: what it would deny is reported and allowed."""
        with self.globals() as values:
            values.set("audit", int(audit))
            values.set("armed", 1)

    # ── end ──

    def uninstall(self) -> list[int]:
        """Disarm, unpin, and unmount the filesystem if nothing else is in it.

        Returns ids of links that somebody still holds (an fd); their programs stay, inert.
        """
        from restrict.release import wait_released

        with self.globals() as values:
            links = values.ids("guard_link_ids")
            programs = values.ids("guard_program_ids")
        self.disarm()
        self.close()
        _remove(self.path)
        return wait_released(links, programs=programs)

    def close(self) -> None:
        """Close the handles; the pins keep the policy."""
        for handle in (self._bss, self.ids, self.events):
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _remove(path: str) -> None:
    """Take the policy's own pins away, links first, and the mount if it is empty then."""
    guard = f"{path}/{_GUARD}"
    try:
        names = os.listdir(guard)
    except FileNotFoundError:
        names = []
    places = [f"{guard}/{name}" for name in sorted(names)]  # link_… before map_…
    try:
        for place in (*places, f"{path}/{STATUS_PIN}"):
            try:
                os.unlink(place)
            except FileNotFoundError:
                pass
        if os.path.isdir(guard):
            os.rmdir(guard)
        if os.listdir(path) or os.stat(path).st_dev == os.stat(os.path.dirname(path)).st_dev:
            return
    except OSError as error:
        raise system_error("the pins cannot be removed", error, "unlink", path=path) from None
    try:
        unmount(path)
        os.rmdir(path)
    except (OSError, PybpfError):  # in use: an empty filesystem is left there
        pass


def _pin_all(obj: Object, links: Mapping[str, Link], path: str) -> None:
    guard = f"{path}/{_GUARD}"
    try:
        os.mkdir(guard, 0o700)
    except OSError as error:
        raise system_error("no folder for the pins", error, "mkdir", path=guard) from None
    for name, link in links.items():
        if name != STATUS:
            link.pin(f"{guard}/link_{name}")
    for name in _MAPS:
        obj.maps[name].pin(f"{path}/{_pin(name)}")
    status = f"{path}/{STATUS_PIN}"
    links[STATUS].pin(status)
    try:
        os.chmod(status, 0o444)
    except OSError as error:
        raise system_error(
            "the status cannot be made readable", error, "chmod", path=status
        ) from None


def _handles(
    path: str, found: Mapping[str, Map], plan: Plan, places: Mapping[str, tuple[int, int]]
) -> Pins:
    offset = plan.variables["guarded"][1]
    return Pins(path, found[".bss"], found["pins_ids"], found["events"], places, int(offset))


def install(
    plan: Plan,
    *,
    path: str = FOLDER,
    owner: int | None = None,
    audit: bool = False,
    strict: bool = False,
    step: Callable[[str], None] = lambda name: None,
) -> Pins:
    """Load, attach, pin, guard and arm; the pins keep the policy, the result is a handle.

    path: mounted if it is not (``filesystem``). owner: tgid (default: this process; 0: nobody).
    strict: nobody but the owner unmounts lazily, of whatever filesystem, in this mount namespace
    and its peers; it narrows a race that bpf/README.md describes.
    step: told the name of each step before it begins. Raises RestrictError, KernelError or
    VerifierError with a place ``step``; what this call made is undone then.
    """
    from pybpf.plan.run import run

    name = "filesystem"
    obj: Object | None = None
    sysctl: Link | None = None
    result: Pins | None = None
    mounted = pinned = False
    try:
        step(name)
        tgid = os.getpid() if owner is None else owner
        ticks = ticks_of(tgid) if tgid else 0
        places = offsets_of(plan.variables, _GLOBALS)
        mounted = filesystem(path)
        if os.path.lexists(f"{path}/{_GUARD}") or os.path.lexists(f"{path}/{STATUS_PIN}"):
            raise RestrictError("the pins policy is installed there already.", path=path)

        name = "load"
        step(name)
        obj = run(plan)

        name = "attach"
        step(name)
        obj.attach()
        links = dict(obj.links)
        if SYSCTL in obj.programs:
            sysctl = links[SYSCTL] = attach_sysctl(obj, SYSCTL)

        name = "pins"
        step(name)
        pinned = True
        _pin_all(obj, links, path)

        name = "guard"
        step(name)
        copies: dict[str, Map] = {}
        for which in _MAPS:
            copies[which] = Map(obj.maps[which].dup(), which)
        copies.pop("counters").close()
        result = _handles(path, copies, plan, places)
        with result.globals() as values:
            # The caller is the owner while it installs: only an owner is let protect.
            values.set("owner_start_ticks", ticks_of(os.getpid()))
            values.set("owner_tgid", os.getpid())
        result.protect(path)
        with result.globals() as values:
            values.set_ids("guard_map_ids", [each.id for each in obj.maps.values()])
            values.set_ids("guard_program_ids", [each.id for each in obj.programs.values()])
            values.set_ids("guard_link_ids", [each.id for each in links.values()])

        name = "arm"
        step(name)
        with result.globals() as values:
            values.set("audit", int(audit))
            values.set("strict", int(strict))
            values.set("kept", KEPT_BY.index("pins"))
            values.set("armed", 1)
            # Last: from here on this process may be a stranger.
            values.set("owner_tgid", 0)
            values.set("owner_start_ticks", ticks)
            values.set("owner_tgid", tgid)
    except BaseException as error:
        _undo(path, result, mounted, pinned)
        for handle in (sysctl, obj):
            if handle is not None:
                handle.close()
        if isinstance(error, PybpfError):
            raise error.at(policy="pins", step=name) from None
        raise
    for handle in (sysctl, obj):
        if handle is not None:
            handle.close()
    return result


def _undo(path: str, result: Pins | None, mounted: bool, pinned: bool) -> None:
    """What ``install`` made goes; the error that made it fail is the one to be told."""
    try:
        if result is not None:
            result.disarm()
            result.close()
        if pinned or mounted:
            _remove(path)
    except (OSError, PybpfError):
        pass


def open_pinned(path: str = FOLDER, plan: Plan | None = None) -> Pins | None:
    """The handle of an installed policy, for its owner or deputy; None if there is none.

    plan: of the version that is installed (default: ``default_plan``). Raises KernelError: EPERM
    or EACCES for everybody else.
    """
    if not os.path.isdir(f"{path}/{_GUARD}"):
        return None
    if plan is None:
        plan = load_plan(default_plan("pins"))
    places = offsets_of(plan.variables, _GLOBALS)
    found: dict[str, Map] = {}
    try:
        for name in (".bss", "pins_ids", "events"):
            found[name] = Map.from_pin(f"{path}/{_pin(name)}")
        return _handles(path, found, plan, places)
    except BaseException as error:
        for handle in found.values():
            handle.close()
        if isinstance(error, KernelError) and error.errno in (errno.EPERM, errno.EACCES):
            error.hint = "Its owner and deputy alone may: `restrict pins status` says who they are."
        raise
