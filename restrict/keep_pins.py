# SPDX-License-Identifier: BSD-2-Clause
"""fsaccess kept by pins: generations of the policy in a bpf filesystem, and what is in force.

    /sys/fs/bpf/restrict/fsaccess            the status of the generation in force, for everybody
    /sys/fs/bpf/restrict/kept/               root's alone
        g1/  link_NAME …  map_NAME …  status one generation: everything that it needs to go on

A link that is pinned stays attached without any process. Which generation is in force is not
written down anywhere: it is what the generations' own ``armed`` say, so that there is no record
that could be wrong after a crash. A folder whose generation is not armed is what a killed process
left behind.

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
from restrict import fsaccess, status
from restrict.errors import KernelError, RestrictError
from restrict.fsaccess import Policy
from restrict.guard import offsets_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["FOLDER", "Generation", "Turn", "clean", "enable", "generations", "in_force", "pin"]

FOLDER = "/sys/fs/bpf/restrict/kept"
_LINK, _MAP, _STATUS = "link_", "map_", "status"


def _pin_name(name: str) -> str:
    """A map's name as a file's: bpffs takes no dots (kernel/bpf/inode.c, bpf_lookup)."""
    return name.lstrip(".").replace(".", "_")


class Generation:
    """The pins of one generation. number: 1 for the first."""

    __slots__ = ("folder", "number")

    def __init__(self, number: int, folder: str = FOLDER) -> None:
        self.number = number
        self.folder = f"{folder}/g{number}"

    @property
    def status_path(self) -> str:
        return f"{self.folder}/{_STATUS}"

    def status(self) -> status.Status | None:
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
        return Map.from_pin(f"{self.folder}/{_MAP}{_pin_name(name)}")

    def open(self, plan: Plan) -> Policy:
        """The policy of these pins, for its owner; closing it ends nothing.

        plan: tells where in .bss the globals are. Raises KernelError (EPERM: not the owner).
        """
        opened: list[Link | Map] = []
        try:
            links = {}
            for name in self.links():
                links[name] = Link.from_pin(f"{self.folder}/{_LINK}{name}")
                opened.append(links[name])
            bss = self.map(".bss")
            opened.append(bss)
            events = self.map("events")
            opened.append(events)
            return Policy(links, bss, bss.value_size, events, offsets_of(plan.variables))
        except BaseException:
            for handle in opened:
                handle.close()
            raise

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
            raise KernelError(
                f"the pins of generation {self.number} cannot be removed: {e.strerror}.",
                errno=e.errno or 0,
                call="unlink",
                path=e.filename or self.folder,
            ) from None


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
        raise KernelError(
            f"the kept generations cannot be listed: {e.strerror}.",
            errno=e.errno or 0,
            call="listdir",
            path=folder,
        ) from None
    return [Generation(number, folder) for number in sorted(numbers)]


def in_force(folder: str = FOLDER) -> list[Generation]:
    """The generations that are armed and attached, oldest first: usually one, two for a moment
    of an upgrade (or after one was killed), both of which must allow what is allowed."""
    found = []
    for generation in generations(folder):
        state = generation.status()
        if state is not None and state.in_force:
            found.append(generation)
    return found


class Turn:
    """flock on the folder, so that one process at a time makes or removes generations."""

    __slots__ = ("_fd", "_folder")

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            os.makedirs(os.path.dirname(self._folder), 0o711, exist_ok=True)
            try:
                os.mkdir(self._folder, 0o700)
            except FileExistsError:
                fsaccess.trusted_folder(self._folder)
            self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self.__exit__()
            busy = e.errno == errno.EWOULDBLOCK
            raise KernelError(
                "another process is changing the kept policy."
                if busy
                else f"the policy's pins cannot be made: {e.strerror}.",
                errno=e.errno or 0,
                call="flock" if busy else "mkdir",
                path=self._folder,
                hint="Wait for it to end." if busy
                else "Mount a bpf filesystem: mount -t bpf bpf /sys/fs/bpf.",
            ) from None
        return self

    def __exit__(self, *exc: object) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def clean(folder: str = FOLDER) -> list[int]:
    """Remove what killed processes left: generations that are not in force, and all but the
    newest of those that are. Returns their numbers. Call it inside a Turn.
    """
    alive = {generation.number for generation in in_force(folder)}
    keep = max(alive, default=0)
    removed = []
    for generation in generations(folder):
        if generation.number != keep:
            generation.remove()
            removed.append(generation.number)
    return removed


def pin(
    generation: Generation, obj: Object, links: Mapping[str, Link], state: Link | None
) -> None:
    """Pin the attached object: links, maps and the status iterator.

    Raises KernelError; what was pinned until then is the caller's to remove.
    """
    try:
        os.mkdir(generation.folder, 0o700)
    except OSError as e:
        raise KernelError(
            f"no folder for the pins: {e.strerror}.",
            errno=e.errno or 0,
            call="mkdir",
            path=generation.folder,
        ) from None
    # The status last: a folder without one was not finished.
    for name, found in obj.maps.items():
        found.pin(f"{generation.folder}/{_MAP}{_pin_name(name)}")
    for name, link in links.items():
        link.pin(f"{generation.folder}/{_LINK}{name}")
    if state is None:
        raise RestrictError("a plan without the status program cannot be kept by pins.")
    state.pin(generation.status_path)


def enable(
    plan: Plan,
    *,
    audit: bool = False,
    owner: int | None = None,
    initramfs_dev: int = 0,
    before_arm: Callable[[Object], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
    folder: str = FOLDER,
) -> Policy:
    """``fsaccess.enable``, kept by pins: enforcement goes on after this process.

    The Policy's handles may be closed by ``release``; ``close`` would take the status away.
    Raises what ``fsaccess.enable`` does, and RestrictError if a generation is in force already;
    nothing is left behind then.
    """
    with Turn(folder):
        present = in_force(folder)
        if present:
            raise RestrictError(
                f"generation {present[-1].number} of the policy is kept by pins already.",
                hint="Replace it with `restrict pins upgrade`.",
                path=folder,
            )
        clean(folder)
        generation = Generation(1, folder)
        try:
            return fsaccess.enable(
                plan,
                audit=audit,
                owner=owner,
                initramfs_dev=initramfs_dev,
                before_arm=before_arm,
                pin=lambda obj, links, state: pin(generation, obj, links, state),
                step=step,
            )
        except BaseException:
            try:
                generation.remove()
            except PybpfError:  # the first error is the one to be told
                pass
            raise
