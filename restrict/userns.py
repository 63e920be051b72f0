# SPDX-License-Identifier: BSD-2-Clause
"""The members of delegated user namespaces leave no inode behind (bpf/userns.bpf.c).

A namespace is *managed* once it is put here, by its inode number, with the mounts on which its
members may create inodes; filesystems that it has mounted itself are always allowed. It is taken
out again when the kernel reports its end.

With pins the policy goes on without a process: ``install`` makes maps and links in bpffs, or takes
those that are there, and ``open_pinned`` finds them again. A handle is not for several threads at
once; processes with handles of the same pins take turns (flock on the directory of the maps).

Needs Linux 6.12 (``lsm=…bpf``, mount ids that are never reused, 6.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map, create
from pybpf.kernel.object import check_kind
from pybpf.kernel.program import Program
from pybpf.kernel.ringbuf import RingBuffer
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import ioctl, syscall
from restrict.errors import KernelError, RestrictError
from restrict.fsaccess import load_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = [
    "MOUNTS_MOST",
    "PINS",
    "Entry",
    "Userns",
    "default_plan",
    "install",
    "load_plan",
    "mount_id",
    "namespace_inode",
    "open_pinned",
    "uninstall",
]

PINS = "/sys/fs/bpf/restrict/userns"
NAMESPACES_MOST = 16384
MOUNTS_MOST = 4096
_PLAN = "/usr/lib/restrict/userns.plan"
_PREFIX = "userns_"
# Map of the object → name of its pin: bpffs takes no dots.
_MAPS = {
    "userns_mounts": "mounts",
    "userns_groups": "groups",
    "userns_ended": "ended",
    "userns_events": "events",
    ".bss": "bss",
}
_INITIAL = 0xEFFFFFFD  # include/uapi/linux/nsfs.h: the initial user namespace
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWUSER = 0x10000000
_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STX_MNT_ID = 144  # offset in struct statx
_TRIES = 10


def default_plan() -> str:
    """The frozen policy: the administrator's, else the one that came with restrict."""
    here = os.path.dirname(os.path.abspath(__file__))
    for path in (_PLAN, f"{here}/objects/userns.plan", f"{here}/../bpf/objects/userns.plan"):
        if os.path.exists(path):
            return os.path.normpath(path)
    return _PLAN


def mount_id(fd: int) -> int:
    """The unique id of the mount that ``fd`` is on (statx, 6.8); it is never given out again."""
    buffer = bytearray(256)
    syscall("statx", fd, "", _AT_EMPTY_PATH, _STATX_MNT_ID_UNIQUE, buffer)
    if not struct.unpack_from("=I", buffer)[0] & _STATX_MNT_ID_UNIQUE:
        raise RestrictError("this kernel tells no unique mount ids; 6.8 is needed.", fd=fd)
    return int(struct.unpack_from("=Q", buffer, _STX_MNT_ID)[0])


def namespace_inode(fd: int) -> int:
    """The inode number of the user namespace that ``fd`` is of; RestrictError if it is none."""
    wrong = RestrictError("the fd is not one of a user namespace.", fd=fd)
    try:
        if os.fstat(fd).st_dev != os.stat("/proc/self/ns/user").st_dev:
            raise wrong
        if ioctl(fd, _NS_GET_NSTYPE) != _CLONE_NEWUSER:
            raise wrong
        return os.fstat(fd).st_ino
    except KernelError as error:
        if error.errno != errno.ENOTTY:
            raise
        raise wrong from None
    except OSError as error:
        raise KernelError(
            f"the namespace cannot be looked at: {error.strerror}.",
            errno=error.errno or 0, call="fstat", fd=fd,
        ) from None  # fmt: skip


def check_inode(inode: int) -> None:
    """Refuse what cannot be the inode number of a delegated user namespace."""
    if not 0 < inode <= 0xFFFFFFFF:
        raise RestrictError(
            f"{inode} is no inode number of a namespace: they have 32 bits.", inode=inode
        )
    if inode == _INITIAL:
        raise RestrictError(
            "that is the initial user namespace: the whole system would be restricted.",
            inode=inode,
        )


class Entry:
    """A managed namespace: its unique mount ids, None if only setgroups is denied there."""

    __slots__ = ("deny_setgroups", "inode", "mounts")

    def __init__(self, inode: int, mounts: list[int] | None, deny_setgroups: bool) -> None:
        self.inode = inode
        self.mounts = mounts
        self.deny_setgroups = deny_setgroups

    def as_dict(self) -> dict[str, object]:
        return {
            "inode": self.inode, "mounts": self.mounts, "deny_setgroups": self.deny_setgroups
        }  # fmt: skip


class Userns:
    """The policy's maps, and its links where this process made them. A context manager.

    reused: names of the programs that were attached already when it was installed.
    """

    def __init__(
        self,
        maps: dict[str, Map],
        links: dict[str, Link],
        *,
        pins: str | None = None,
        reused: Sequence[str] = (),
    ) -> None:
        self.maps = maps
        self.links = links
        self.pins = pins
        self.reused = tuple(reused)
        self._lock = _lock(pins) if pins is not None else -1
        self._ended: RingBuffer | None = None

    # ── namespaces ──

    def put_by_fd(
        self,
        userns_fd: int,
        mounts: Sequence[int] = (),
        *,
        replace: bool = False,
        deny_setgroups: bool | None = None,
    ) -> int:
        """``put_by_inode`` of the namespace that the fd is of, which it returns."""
        inode = namespace_inode(userns_fd)
        self.put_by_inode(inode, mounts, replace=replace, deny_setgroups=deny_setgroups)
        return inode

    def put_by_inode(
        self,
        inode: int,
        mounts: Sequence[int] = (),
        *,
        replace: bool = False,
        deny_setgroups: bool | None = None,
    ) -> None:
        """Manage a namespace; its members may create inodes on the mounts of the fds ``mounts``.

        replace: forget the mounts listed before; else add to them. deny_setgroups: True or False
        sets it, None leaves it as it is. The caller keeps the namespace alive meanwhile.
        Raises RestrictError for an inode number above 32 bits, and KernelError.
        """
        check_inode(inode)
        ids = [mount_id(fd) for fd in mounts]
        key = struct.pack("=I", inode)
        with _Turn(self._lock):
            self._remove_ended()
            # First: a namespace that is not to have both must at no moment have only one.
            if deny_setgroups:
                self.maps["userns_groups"].update(key, 1)
            self._put(key, ids, replace)
            if deny_setgroups is False:
                self.maps["userns_groups"].delete(key)

    def _put(self, key: bytes, ids: Sequence[int], replace: bool) -> None:
        outer = self.maps["userns_mounts"]
        for _ in range(_TRIES):
            if not replace:
                present = outer.lookup(key)
                if present is not None:
                    found = self._inner(present)
                    if found is None:
                        continue  # replaced or removed since
                    with found:
                        _allow(found, ids)
                    return
            with _new_inner() as made:
                _allow(made, ids)
                try:
                    outer.update(
                        key,
                        struct.pack("=i", made.fileno()),
                        abi.BPF_ANY if replace else abi.BPF_NOEXIST,
                    )
                except KernelError as error:
                    if error.errno == errno.EEXIST:
                        continue  # another process was faster: add to its map
                    if error.errno == errno.E2BIG:
                        error.hint = f"At most {NAMESPACES_MOST} namespaces can be managed."
                    raise
            return
        raise KernelError(
            f"the namespace's entry changed under our hands {_TRIES} times.",
            errno=errno.EEXIST, call="BPF_MAP_UPDATE_ELEM", map=outer.name,
        )  # fmt: skip

    @staticmethod
    def _inner(ident: bytes) -> Map | None:
        try:
            return Map.from_id(struct.unpack("=I", ident)[0])
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def reset_by_inode(self, inode: int) -> bool:
        """Take a namespace out; False if it was not in. An inode above 32 bits never is."""
        if not 0 < inode <= 0xFFFFFFFF:
            return False
        with _Turn(self._lock):
            return self._reset(inode)

    def _reset(self, inode: int) -> bool:
        key = struct.pack("=I", inode)
        mounts = self.maps["userns_mounts"].delete(key)
        groups = self.maps["userns_groups"].delete(key)
        return mounts or groups

    def namespaces(self) -> list[Entry]:
        """What is managed, by inode number."""
        found: dict[int, list[int] | None] = {}
        outer = self.maps["userns_mounts"]
        for key in outer.raw_keys():
            present = outer.lookup(key)
            inner = self._inner(present) if present is not None else None
            if inner is None:
                continue
            with inner:
                mounts = sorted(struct.unpack("=Q", k)[0] for k in inner.raw_keys())
            found[struct.unpack("=I", key)[0]] = mounts
        groups = {struct.unpack("=I", k)[0] for k in self.maps["userns_groups"].raw_keys()}
        return [
            Entry(inode, found.get(inode), inode in groups) for inode in sorted({*found, *groups})
        ]

    # ── their end ──

    def fileno(self) -> int:
        """For poll(2): readable when a managed namespace has ended."""
        return self.maps["userns_ended"].fileno()

    def remove_ended(self) -> list[int]:
        """Take out the namespaces that have ended; their inode numbers. ``put_*`` does so too,
        before a number that was given out again can be put."""
        with _Turn(self._lock):
            return self._remove_ended()

    def _remove_ended(self) -> list[int]:
        if self._ended is None:
            self._ended = RingBuffer(self.maps["userns_ended"])
        gone: list[int] = []

        def remove(record: memoryview) -> None:
            inode = int(struct.unpack_from("=I", record)[0])
            if self._reset(inode):
                gone.append(inode)

        self._ended.consume(remove)
        return gone

    # ── the whole ──

    def close(self) -> None:
        """Close every handle; without pins that ends the policy."""
        if self._ended is not None:
            self._ended.close()
            self._ended = None
        for handle in (*self.links.values(), *self.maps.values()):
            handle.close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Turn:
    """Holds the lock on the directory of pins; nothing to do without pins."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def _new_inner() -> Map:
    return create(
        abi.BPF_MAP_TYPE_HASH, 8, 4, MOUNTS_MOST,
        name="userns_allowed", flags=abi.BPF_F_NO_PREALLOC,
    )  # fmt: skip


def _allow(inner: Map, ids: Sequence[int]) -> None:
    for ident in ids:
        try:
            inner.update(struct.pack("=Q", ident), 1)
        except KernelError as error:
            if error.errno == errno.E2BIG:
                error.hint = f"A namespace can have at most {MOUNTS_MOST} mounts."
            raise


# ── installing ──


def _lock(pins: str) -> int:
    return os.open(f"{pins}/maps", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _make_folders(pins: str) -> None:
    """Make the directories of the pins, whose every part is root's alone."""
    for part in ("maps", "programs"):
        path = f"{pins}/{part}"
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            info = os.lstat(path)
        except OSError as error:
            raise KernelError(
                f"no directory for the pins: {error.strerror}.",
                errno=error.errno or 0, call="mkdir", path=path,
                hint="Mount bpffs: mount -t bpf bpf /sys/fs/bpf.",
            ) from None  # fmt: skip
        if info.st_uid != 0 or info.st_mode & 0o022:
            raise RestrictError(
                "it is no directory that root alone can write to.", path=path, hint="Remove it."
            )


def _pinned(path: str, kind: str) -> int | None:
    try:
        fd = bpf.obj_get(path)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise error.at(path=path) from None
    try:
        check_kind(fd, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


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


def install(plan: Plan, *, pins: str | None = PINS, audit: bool = False) -> Userns:
    """Load, attach and arm; what is pinned already is taken and told in ``Userns.reused``.

    pins: a directory in bpffs, made if it is missing; None: the policy ends with the handle.
    audit: report, but deny nothing. Raises RestrictError, KernelError or VerifierError; what this
    call made is undone then.
    """
    from pybpf.plan.run import run

    made: list[str] = []
    links: dict[str, Link] = {}
    given: dict[str, int] = {}
    reused: list[str] = []
    obj: Object | None = None
    result: Userns | None = None
    lock = -1
    try:
        if pins is not None:
            _make_folders(pins)
            lock = _lock(pins)
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name, pin in _MAPS.items():
                fd = _pinned(f"{pins}/maps/{pin}", "map")
                if fd is not None:
                    given[name] = fd
        obj = run(plan, maps=given)
        if pins is not None:
            for name, pin in _MAPS.items():
                if name not in given:
                    path = f"{pins}/maps/{pin}"
                    obj.maps[name].pin(path)
                    made.append(path)
        for name in obj.programs:
            path = f"{pins}/programs/{name.removeprefix(_PREFIX)}"
            fd = _pinned(path, "link") if pins is not None else None
            if fd is not None:
                links[name] = Link(fd, name)
                _check_link(links[name], obj, name, path)
                reused.append(name)
                continue
            attached = obj.attach_program(name)
            assert attached is not None
            links[name] = Link(attached.dup(), name)
            if pins is not None:
                links[name].pin(path)
                made.append(path)
        obj.vars["audit"] = int(audit)
        obj.vars["armed"] = 1
        maps = {name: Map(obj.maps[name].dup(), name) for name in _MAPS}
        result = Userns(maps, links, pins=pins, reused=reused)
    except BaseException as error:
        for path in reversed(made):
            _unlink(path)
        for link in links.values():
            link.close()
        if pins is not None:
            _remove_folders(pins)
        if isinstance(error, PybpfError):
            raise error.at(policy="userns") from None
        raise
    finally:
        if obj is not None:
            obj.close()
        for fd in given.values():
            os.close(fd)
        if lock >= 0:
            os.close(lock)
    return result


def open_pinned(pins: str = PINS) -> Userns | None:
    """The handle of an installed policy; None if nothing is pinned there."""
    maps: dict[str, Map] = {}
    if not os.path.isdir(f"{pins}/maps"):
        return None
    try:
        for name, pin in _MAPS.items():
            fd = _pinned(f"{pins}/maps/{pin}", "map")
            if fd is None:
                if maps:
                    raise RestrictError(
                        f"the pin {pin} is missing beside the others.",
                        path=f"{pins}/maps", hint="Install again.",
                    )  # fmt: skip
                return None
            maps[name] = Map(fd, name)
        result = Userns(maps, {}, pins=pins)
    except BaseException:
        for found in maps.values():
            found.close()
        raise
    return result


def pinned_links(pins: str = PINS) -> Iterator[str]:
    """Names of the programs whose links are pinned."""
    try:
        yield from sorted(os.listdir(f"{pins}/programs"))
    except FileNotFoundError:
        return


def uninstall(pins: str = PINS) -> bool:
    """Remove the pins, links first; False if there were none."""
    found = False
    for part in ("programs", "maps"):
        folder = f"{pins}/{part}"
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        for name in names:
            found = _unlink(f"{folder}/{name}") or found
    _remove_folders(pins)
    return found


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _remove_folders(pins: str) -> None:
    for path in (f"{pins}/programs", f"{pins}/maps", pins):
        try:
            os.rmdir(path)
        except OSError:  # not empty, or not there: somebody else's
            pass
