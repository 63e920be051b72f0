# SPDX-License-Identifier: BSD-2-Clause
"""fsaccess kept by pins: generations of the policy in a bpf filesystem, and what is in force.

    /sys/fs/bpf/restrict/fsaccess            the status of the generation in force, for everybody
    /sys/fs/bpf/restrict/kept/               root's alone
        g1/  link_NAME …  map_NAME …  status one generation: everything that it needs to go on

A link that is pinned stays attached without any process. Which generation is in force is not
written down anywhere: it is what the generations' own ``armed`` say, so that there is no record
that could be wrong after a crash. A folder whose generation is not armed is what a killed process
left behind. Of two that are armed both must allow what is allowed; the newer one stays.

Pins of themselves keep nobody off: root unlinks them or unmounts the filesystem. The pins policy
over the filesystem does. Maps are opened by the owner alone (fsaccess' own guard).

Needs Linux 6.12.
"""

from __future__ import annotations

import errno
import fcntl
import os

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from restrict import fsaccess, keep, pins, pins_status, status
from restrict.errors import KernelError, RestrictError, system_error
from restrict.fsaccess import Policy
from restrict.guard import COMMON, GLOBALS, Globals, is_alive, start_ticks, ticks_of
from restrict.mounts import unmount
from restrict.policy import make_folder, pin_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan
    from restrict.status import Status

__all__ = [
    "FOLDER",
    "Generation",
    "Turn",
    "appoint",
    "clean",
    "enable",
    "generations",
    "in_force",
    "make",
    "places_of",
    "publish",
    "require_owner",
]

FOLDER = "/sys/fs/bpf/restrict/kept"
_LINK, _MAP, _STATUS = "link_", "map_", "status"


class Generation:
    """The pins of one generation. number: 1 for the first."""

    __slots__ = ("folder", "number", "parent")

    def __init__(self, number: int, folder: str = FOLDER) -> None:
        self.number = number
        self.parent = folder
        self.folder = f"{folder}/g{number}"

    @property
    def status_path(self) -> str:
        return f"{self.folder}/{_STATUS}"

    def status(self) -> Status | None:
        """What it says of itself; None if it has no status (it was left half made)."""
        return status.read(self.status_path)

    def names(self) -> list[str]:
        """Its pins, sorted; empty if there is no such folder."""
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    def links(self) -> list[str]:
        """Names of the programs whose links are pinned."""
        return [n[len(_LINK) :] for n in self.names() if n.startswith(_LINK)]

    def map(self, name: str) -> Map:
        """Open one of its maps: the owner's right alone. Raises KernelError."""
        return Map.from_pin(f"{self.folder}/{_MAP}{pin_name(name)}")

    def globals(self) -> _Kept:
        """Its globals, for its owner, in a ``with`` block."""
        return _Kept(self.map(".bss"))

    def remove(self) -> None:
        """Unpin everything, links first: with the last reference to a link its program detaches.

        The order is such that a kill in between leaves what a further call removes. Raises
        KernelError.
        """
        names = self.names()
        names.sort(key=lambda name: (not name.startswith(_LINK), name == _STATUS, name))
        try:
            for name in names:
                _gone(os.unlink, f"{self.folder}/{name}")
            _gone(os.rmdir, self.folder)
        except OSError as e:
            raise system_error(
                f"the pins of generation {self.number} cannot be removed", e, "unlink",
                path=e.filename or self.folder,
            ) from None  # fmt: skip


def _gone(act: Callable[[str], None], path: str) -> None:
    try:
        act(path)
    except FileNotFoundError:
        pass


def generations(folder: str = FOLDER) -> list[Generation]:
    """Every generation with a folder, oldest first."""
    numbers = []
    try:
        for name in os.listdir(folder):
            if name[:1] == "g" and name[1:].isascii() and name[1:].isdigit():
                numbers.append(int(name[1:]))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise system_error(
            "the kept generations cannot be listed", e, "listdir", path=folder
        ) from None
    return [Generation(number, folder) for number in sorted(numbers)]


def in_force(folder: str = FOLDER) -> list[Generation]:
    """The generations that are armed and attached, oldest first: usually one, two for a moment
    of an upgrade, or after one was killed.

    Where one enforces, those that are in audit mode do not count: they would not replace it.
    """
    found = []
    for generation in generations(folder):
        state = generation.status()
        if state is not None and state.in_force:
            found.append((generation, state.audit))
    enforcing = [generation for generation, audit in found if not audit]
    return enforcing or [generation for generation, _ in found]


class Turn:
    """flock on the folder, so that one process at a time makes or removes generations."""

    __slots__ = ("_fd", "_folder")

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            make_folder(os.path.dirname(self._folder), 0o711, above=True)
            make_folder(self._folder, 0o700)
            self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self.__exit__()
            busy = e.errno == errno.EWOULDBLOCK
            hint = "Mount a bpf filesystem: mount -t bpf bpf /sys/fs/bpf."
            if busy:
                hint = "Wait for it to end."
            elif e.errno in (errno.EPERM, errno.EACCES) and _is_guarded(self._folder):
                hint = "A pins policy with another owner is over it; see `restrict pins status`."
            raise KernelError(
                "another process is changing the kept policy."
                if busy
                else f"the policy's pins cannot be made: {e.strerror}.",
                errno=e.errno or 0,
                call="flock" if busy else "mkdir",
                path=self._folder,
                hint=hint,
            ) from None
        return self

    def __exit__(self, *exc: object) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_guarded(folder: str) -> bool:
    try:
        return pins_status.guarded(os.path.dirname(folder))
    except (PybpfError, OSError):
        return False


def clean(folder: str = FOLDER) -> list[int]:
    """Remove what killed processes left: generations that are not in force, and all but the
    newest of those that are. Returns their numbers. Call it inside a Turn.
    """
    alive = in_force(folder)
    newest = alive[-1] if alive else None
    removed = []
    others = [g for g in generations(folder) if newest is None or g.number != newest.number]
    if others and newest is not None:
        with Link.from_pin(newest.status_path) as link:
            publish(link)
    for generation in others:
        generation.remove()
        removed.append(generation.number)
    return removed


def publish(link: Link, path: str = fsaccess.PIN) -> None:
    """Make this status iterator the one that everybody reads, in one step (rename)."""
    new = f"{path}_new"
    try:
        _gone(os.unlink, new)
        link.pin(new)
        os.chmod(new, 0o444)
        os.rename(new, path)
    except OSError as e:
        raise system_error("the status cannot be shown", e, "rename", path=path) from None


def places_of(found: Map, name: str = ".bss") -> dict[str, tuple[int, int]]:
    """{variable: (offset, size)} of a map of globals, from the BTF that the kernel has of it.

    So it is right for a generation that another version of this program has made.
    """
    from pybpf.btf.model import Btf
    from pybpf.kernel.btf import BtfObject

    info = found.info()
    if not info["btf_id"]:
        raise RestrictError("the kernel knows no types of it.", map=name)
    with BtfObject.from_id(info["btf_id"]) as btf:
        types = Btf.parse(btf.data(), name=name)
        section = types.type(info["btf_value_type_id"])
        return {types.type(v.type).name: (v.offset, v.size) for v in section.variables}


class _Kept(Globals):
    """The globals of a pinned .bss, whose places come from the kernel; closes the map."""

    __slots__ = ("_bss",)

    def __init__(self, bss: Map) -> None:
        self._bss = bss
        try:
            places = places_of(bss)
            known = {n: p for n, p in places.items() if n in GLOBALS}
            missing = set(COMMON) - set(known)
            if missing:
                raise RestrictError(f"it has no {', '.join(sorted(missing))}.", map=".bss")
            super().__init__(bss.fileno(), bss.value_size, known)
        except BaseException:
            bss.close()
            raise

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._bss.close()


def require_owner(state: Status, what: str) -> None:
    """Raise RestrictError, which says who the owner is, unless this process is it or its deputy.

    The kernel would refuse as well (EPERM); this tells why.
    """
    me = os.getpid()
    for tgid, ticks in (
        (state.owner, state.owner_start_ticks), (state.deputy, state.deputy_start_ticks),
    ):  # fmt: skip
        if tgid == me and (tgid == 1 or ticks == start_ticks()):
            return
    alive = is_alive(state.owner, state.owner_start_ticks)
    if not state.owner:
        who, hint = "it has no owner", "It stays as it is until the next boot."
    elif state.owner == 1:
        who = "its owner is process 1"
        hint = "PID 1 itself must execute the command, or appoint this process as its deputy."
    elif alive:
        who = f"its owner is process {state.owner}"
        hint = "That process must do it: exec keeps the number. Or it appoints a deputy."
    else:
        who = f"its owner was process {state.owner}, which has ended"
        hint = "It stays as it is until the next boot."
    raise RestrictError(
        f"{what} is the right of the policy's owner; {who}, and this is process {me}.", hint=hint
    )


def appoint(pid: int | None, folder: str = FOLDER) -> None:
    """Give another process the owner's rights beside the owner (None: take them back), in the
    generations in force and in the pins policy over them.

    Raises RestrictError if nothing is in force, this process is not the owner, or there is no
    process ``pid``.
    """
    ticks = 0 if pid is None else ticks_of(pid)  # before anything is changed
    with Turn(folder):
        for generation in in_force(folder) or _nothing(folder):
            state = generation.status()
            if state is not None:
                require_owner(state, "appointing a deputy")
            with generation.globals() as values:
                # While they are exchanged nobody is the deputy: tgid 0 fits no process.
                values.set("deputy_tgid", 0)
                values.set("deputy_start_ticks", ticks)
                values.set("deputy_tgid", pid or 0)
        if pins_status.guarded(folder):
            guard = pins.open_pinned(os.path.dirname(folder))
            if guard is not None:
                with guard:
                    guard.delegate(pid)


def _nothing(folder: str) -> list[Generation]:
    raise RestrictError("no policy is kept by pins.", path=folder)


def _pin(generation: Generation, obj: Object, links: Mapping[str, Link]) -> None:
    """Pin maps and links of the attached object; the folder is there already."""
    for name, found in obj.maps.items():
        found.pin(f"{generation.folder}/{_MAP}{pin_name(name)}")
    for name, link in links.items():
        link.pin(f"{generation.folder}/{_LINK}{name}")


def make(
    generation: Generation,
    plan: Plan,
    *,
    audit: bool = False,
    owner: int | None = None,
    owner_ticks: int | None = None,
    initramfs_dev: int = 0,
    deputy: tuple[int, int] = (0, 0),
    before_arm: Callable[[Object], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Policy:
    """``fsaccess.enable`` with everything pinned before it is armed. Nothing is published.

    Raises what that does; nothing is left of the generation then.
    """
    try:
        return fsaccess.enable(
            plan,
            audit=audit,
            owner=owner,
            owner_ticks=owner_ticks,
            initramfs_dev=initramfs_dev,
            settings={
                "kept": keep.method("pins").number,
                "generation": generation.number,
                "deputy_start_ticks": deputy[1],
                "deputy_tgid": deputy[0],
            },
            status_pin=generation.status_path,
            before_arm=before_arm,
            pin=lambda obj, links, _: _pin(generation, obj, links),
            step=step,
        )
    except BaseException:
        try:
            generation.remove()
        except PybpfError:  # the first error is the one to be told
            pass
        raise


def enable(
    plan: Plan,
    *,
    audit: bool = False,
    owner: int | None = None,
    initramfs_dev: int = 0,
    guard: Plan | None = None,
    own_filesystem: bool = False,
    before_arm: Callable[[Object], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
    folder: str = FOLDER,
) -> Policy:
    """``fsaccess.enable``, kept by pins: enforcement goes on after this process.

    guard: the pins policy's Plan, which is put over the filesystem of the pins with the same owner
    unless it is in force there already; without it root can take the pins away.
    own_filesystem: mount one for the pins, so that a pins policy can be put over it later.
    ``release`` closes the handles of the Policy; ``close`` would take its status away.
    Raises what ``fsaccess.enable`` and ``pins.install`` do, and RestrictError if a generation is
    in force already; nothing is left behind then.
    """
    place = os.path.dirname(folder)
    mounted = (own_filesystem or guard is not None) and pins.filesystem(place)
    try:
        with Turn(folder):
            return _enable(
                plan, audit, owner, initramfs_dev, guard, before_arm, step, Generation(1, folder)
            )
    except BaseException:
        if mounted:
            try:
                unmount(place)
                os.rmdir(place)
            except (OSError, PybpfError):  # the first error is the one to be told
                pass
        raise


def _enable(
    plan: Plan,
    audit: bool,
    owner: int | None,
    initramfs_dev: int,
    guard: Plan | None,
    before_arm: Callable[[Object], None] | None,
    step: Callable[[str], None],
    generation: Generation,
) -> Policy:
    folder = generation.parent
    present = in_force(folder)
    if present:
        raise RestrictError(
            f"generation {present[-1].number} of the policy is kept by pins already.",
            hint="Replace it with `restrict pins upgrade`.",
            path=folder,
        )
    clean(folder)
    policy = make(
        generation,
        plan,
        audit=audit,
        owner=owner,
        initramfs_dev=initramfs_dev,
        before_arm=before_arm,
        step=step,
    )
    try:
        if policy.status is not None:
            publish(policy.status)
        if guard is not None and not pins_status.guarded(folder):
            place = os.path.dirname(folder)
            pins.install(guard, path=place, owner=owner, audit=audit, step=step).close()
    except BaseException:
        _take_back(policy, generation)
        raise
    return policy


def _take_back(policy: Policy, generation: Generation) -> None:
    """Undo what was armed a moment ago; nothing guards it yet, and the handles are open."""
    try:
        with policy.globals() as values:
            values.set("armed", 0)
        policy.release()
        generation.remove()
        _gone(os.unlink, fsaccess.PIN)
    except (OSError, PybpfError):  # the first error is the one to be told
        pass
