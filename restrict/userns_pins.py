# SPDX-License-Identifier: BSD-2-Clause
"""The userns policy's life: installed with pins or for this process, found again, removed.

    /sys/fs/bpf/restrict/userns/status       what is in force, for everybody
    /sys/fs/bpf/restrict/userns/maps/        root's alone
    /sys/fs/bpf/restrict/userns/programs/    the links

With pins the policy goes on without a process. Who may open its maps then is the guard's
business (bpf/common/guard.h): whoever has CAP_SYS_ADMIN in the initial user namespace, or, where
an owner was named, that process alone. Pins of themselves keep root off nothing; the pins policy
does.

Needs Linux 6.12.
"""

from __future__ import annotations

import errno
import fcntl
import os

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.kernel.program import Program
from restrict.errors import KernelError, RestrictError, system_error
from restrict.guard import Globals, offsets_of, ticks_of
from restrict.policy import load_plan, make_folder
from restrict.release import wait_released
from restrict.userns import GLOBALS, Userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from pybpf.kernel.object import KernelObject
    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

    _T = TypeVar("_T", bound=KernelObject)

__all__ = [
    "PINS",
    "STATUS",
    "install",
    "load_plan",
    "open_pinned",
    "pinned_links",
    "uninstall",
]

PINS = "/sys/fs/bpf/restrict/userns"
STATUS = "userns_status"
_PREFIX = "userns_"
# Map of the object → name of its pin: bpffs takes no dots.
_MAPS = {
    "userns_mounts": "mounts",
    "userns_groups": "groups",
    "userns_ended": "ended",
    "events": "events",
    "counters": "counters",
    ".bss": "bss",
}


def _lock(pins: str) -> int:
    folder = f"{pins}/maps"
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise system_error(
            "the directory of the maps cannot be opened", error, "open", path=folder
        ) from None


def _make_folders(pins: str) -> None:
    """Make the directories of the pins; nobody but root may write to any of them."""
    above = os.path.dirname(pins)
    for path, mode in (
        (above, 0o711), (pins, 0o711), (f"{pins}/maps", 0o700), (f"{pins}/programs", 0o700),
    ):  # fmt: skip
        try:
            make_folder(path, mode, above=path == above)
        except OSError as error:
            hint = "Mount bpffs: mount -t bpf bpf /sys/fs/bpf."
            if error.errno == errno.EPERM and os.path.ismount(os.path.dirname(pins)):
                hint = "The pins policy lets its owner alone make pins there: restrict pins status."
            raise system_error(
                "no directory for the pins", error, "mkdir", hint=hint, path=path
            ) from None


def _pinned(kind: type[_T], path: str, name: str) -> _T | None:
    """What is pinned there, under the name that it has in the object; None if nothing is."""
    try:
        return kind(kind.from_pin(path).detach_fd(), name)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno in (errno.EPERM, errno.EACCES):
            error.hint = (
                "It is root's, and the guard gives it to the policy's owner alone, see `restrict "
                "userns status`; without one, to whoever has CAP_SYS_ADMIN in the initial user "
                "namespace."
            )
        raise


def _check_link(link: Link, obj: Object, name: str, path: str) -> None:
    """A link that is reused must be of this very program with these very maps."""
    ours = obj.programs[name]
    shared = {obj.maps[map_name].id for map_name in _MAPS} & set(ours.map_ids())
    with Program.from_id(link.prog_id) as theirs:
        same = theirs.info()["tag"] == ours.info()["tag"] and shared <= set(theirs.map_ids())
    if not same:
        raise RestrictError(
            "the pinned link is not of this version's program and maps.",
            program=name, path=path,
            hint="Remove the pins first: restrict userns uninstall.",
        )  # fmt: skip


def _link_pin(pins: str, name: str) -> str:
    return f"{pins}/{'' if name == STATUS else 'programs/'}{name.removeprefix(_PREFIX)}"


class _Installation:
    """What was made so far, to be undone or handed over."""

    def __init__(self, pins: str | None) -> None:
        self.pins = pins
        self.lock = -1
        self.given: dict[str, Map] = {}
        self.links: dict[str, Link] = {}
        self.reused: list[str] = []
        self.made: list[str] = []
        self.obj: Object | None = None

    def load(self, plan: Plan) -> Object:
        """Load the object, with the maps that are pinned already in place of new ones."""
        from pybpf.plan.run import run

        if self.pins is not None:
            _make_folders(self.pins)
            self.lock = _lock(self.pins)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            for name, pin in _MAPS.items():
                found = _pinned(Map, f"{self.pins}/maps/{pin}", name)
                if found is not None:
                    self.given[name] = found
        self.obj = obj = run(plan, maps={name: m.fileno() for name, m in self.given.items()})
        if self.pins is not None:
            for name, pin in _MAPS.items():
                if name not in self.given:
                    path = f"{self.pins}/maps/{pin}"
                    obj.maps[name].pin(path)
                    self.made.append(path)
        return obj

    def attach(self, obj: Object) -> None:
        """Attach what no pinned link attaches already."""
        for name in obj.programs:
            path = _link_pin(self.pins, name) if self.pins is not None else ""
            found = _pinned(Link, path, name) if path else None
            if found is not None:
                self.links[name] = found
                _check_link(found, obj, name, path)
                self.reused.append(name)
                continue
            if name == STATUS and not path:
                continue
            attached = obj.attach_program(name)
            assert attached is not None
            self.links[name] = Link(attached.dup(), name)
            if path:
                self.links[name].pin(path)
                self.made.append(path)
                if name == STATUS:
                    os.chmod(path, 0o444)

    def guard(self, obj: Object, values: Globals, owner: int, ticks: int) -> None:
        """Tell the guard what it guards and for whom: tgid and start time, 0 for administrators."""
        programs: set[int] = set()
        maps = {obj.maps[name].id for name in _MAPS}
        for link in self.links.values():
            programs.add(link.prog_id)
            with Program.from_id(link.prog_id) as program:
                maps.update(program.map_ids())
        values.set_ids("guard_map_ids", sorted(maps))
        values.set_ids("guard_program_ids", sorted(programs))
        values.set_ids("guard_link_ids", sorted(link.id for link in self.links.values()))
        values.set("administrators", int(not owner))
        values.set("owner_start_ticks", ticks)
        values.set("owner_tgid", owner)

    def undo(self) -> None:
        """What was made goes; the error that made it fail is the one to be told."""
        for path in reversed(self.made):
            try:
                os.unlink(path)
            except OSError:
                pass
        for link in self.links.values():
            link.close()
        if self.pins is not None:
            _remove_folders(self.pins)

    def close(self) -> None:
        if self.obj is not None:
            self.obj.close()
        for found in self.given.values():
            found.close()
        if self.lock >= 0:
            os.close(self.lock)


def install(
    plan: Plan, *, pins: str | None = PINS, audit: bool = False, owner: int | None = None
) -> Userns:
    """Load, attach, guard and arm; what is pinned already is taken and told in ``Userns.reused``.

    pins: a directory in bpffs, made if it is missing; None: the policy ends with the handle.
    audit: report, but deny nothing. owner: tgid of the one process that may open the policy's maps
    from now on; None: whoever has CAP_SYS_ADMIN in the initial user namespace, and without pins
    this process. Raises RestrictError, KernelError or VerifierError; what this call made is undone
    then.
    """
    work = _Installation(pins)
    if owner is None:
        owner = 0 if pins is not None else os.getpid()
    try:
        # Before anything is touched: a policy that is in force may not lose its owner half-way.
        ticks = ticks_of(owner) if owner else 0
        places = offsets_of(plan.variables, GLOBALS)
        obj = work.load(plan)
        work.attach(obj)
        maps = {name: Map(obj.maps[name].dup(), name) for name in _MAPS}
        result = Userns(
            maps, work.links, places=places, pins=pins, reused=work.reused,
            lock=-1 if pins is None else _lock(pins),
        )  # fmt: skip
        try:
            with result.globals() as values:
                values.set("audit", int(audit))
                work.guard(obj, values, owner, ticks)
                values.set("armed", 1)
        except BaseException:
            result.close()
            raise
    except BaseException as error:
        work.undo()
        if isinstance(error, PybpfError):
            raise error.at(policy="userns") from None
        if isinstance(error, OSError):
            raise system_error(
                "the policy cannot be installed", error, "open", policy="userns",
                path=error.filename,
            ) from None  # fmt: skip
        raise
    finally:
        work.close()
    return result


def open_pinned(pins: str = PINS) -> Userns | None:
    """The handle of an installed policy; None if nothing is pinned there."""
    maps: dict[str, Map] = {}
    if not os.path.isdir(f"{pins}/maps"):
        return None
    try:
        for name, pin in _MAPS.items():
            present = _pinned(Map, f"{pins}/maps/{pin}", name)
            if present is None:
                if maps:
                    raise RestrictError(
                        f"the pin {pin} is missing beside the others.",
                        path=f"{pins}/maps", hint="Install again.",
                    )  # fmt: skip
                return None
            maps[name] = present
        result = Userns(maps, {}, pins=pins, lock=_lock(pins))
    except BaseException:
        for found in maps.values():
            found.close()
        raise
    return result


def pinned_links(pins: str = PINS) -> list[str]:
    """Names of the programs whose links are pinned. Raises KernelError."""
    folder = f"{pins}/programs"
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise system_error("the pins cannot be listed", error, "readdir", path=folder) from None


def uninstall(pins: str = PINS, *, timeout: float = 5.0) -> bool:
    """Remove the pins, links first, and wait until nothing is attached any more, for at most
    ``timeout`` seconds.

    False if there were none. Raises RestrictError if somebody else holds links, whose programs then
    go on, and KernelError if a pin cannot be removed.
    """
    found = False
    links: list[int] = []
    programs: list[int] = []
    for name in pinned_links(pins):
        found_link = _pinned(Link, f"{pins}/programs/{name}", name)
        if found_link is not None:
            with found_link as link:
                links.append(link.id)
                programs.append(link.prog_id)
    try:
        for folder in (f"{pins}/programs", f"{pins}/maps"):
            try:
                names = os.listdir(folder)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name in names:
                found = _unlink(f"{folder}/{name}") or found
        found = _unlink(f"{pins}/status") or found
    except OSError as error:
        raise system_error(
            "the policy's pins cannot be removed", error, "unlink", path=error.filename,
            policy="userns",
        ) from None  # fmt: skip
    _remove_folders(pins)
    left = wait_released(links, timeout, programs=programs)
    if left:
        raise RestrictError(
            f"the pins are removed, but somebody else holds {len(left)} links, whose programs go "
            f"on: {' '.join(map(str, left))}.",
            policy="userns", hint="An fd holds them, or another pin: `pybpf link list`.",
        )  # fmt: skip
    return found


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _remove_folders(pins: str) -> None:
    for path in (f"{pins}/programs", f"{pins}/maps", pins):
        try:
            os.rmdir(path)
        except OSError:  # not empty, or not there: somebody else's
            pass
