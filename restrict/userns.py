# SPDX-License-Identifier: BSD-2-Clause
"""The members of delegated user namespaces leave no inode behind (bpf/userns.bpf.c).

A namespace is *managed* once it is put here, by its inode number, with the mounts on which its
members may create inodes; filesystems that it has mounted itself are always allowed. It is taken
out again when the kernel reports its end.

``restrict.userns_pins`` installs the policy, and gives the handle that is described here. A handle
is not for several threads at once; processes with handles of the same pins take turns (flock on the
directory of the maps).

Needs Linux 6.12 (``lsm=…bpf``, mount ids that are never reused, 6.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from pybpf.kernel.map import Map, create
from pybpf.kernel.ringbuf import RingBuffer
from pybpf.sys import abi
from pybpf.sys.syscalls import ioctl, syscall
from restrict.errors import KernelError, RestrictError
from restrict.guard import COMMON, Globals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from pybpf.kernel.link import Link

__all__ = [
    "GLOBALS",
    "MOUNTS_MOST",
    "NAMESPACES_MOST",
    "Entry",
    "Userns",
    "mount_id",
    "namespace_inode",
]

NAMESPACES_MOST = 16384
MOUNTS_MOST = 4096
GLOBALS = {**COMMON, "administrators": 4}
_INNER = "userns_allowed"  # the guard knows inner maps by this name (bpf/userns/guard.h)
_ROOM = 16  # mounts that a new inner map has room for: one of 4096 takes 70 KB
_INITIAL = 0xEFFFFFFD  # include/uapi/linux/nsfs.h: the initial user namespace
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWUSER = 0x10000000
_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STX_MNT_ID = 144  # offset in struct statx
_TRIES = 10


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

    reused: names of the programs that were attached already when it was installed. lock: an fd to
    lock by; this object closes it.
    """

    def __init__(
        self,
        maps: dict[str, Map],
        links: dict[str, Link],
        *,
        places: Mapping[str, tuple[int, int]] | None = None,
        pins: str | None = None,
        reused: Sequence[str] = (),
        lock: int = -1,
    ) -> None:
        self.maps = maps
        self.links = links
        self.pins = pins
        self.places = places
        self.reused = tuple(reused)
        self._lock = lock
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
                        if _allow(found, ids):
                            return
                        # There is no room left: a larger one takes its place.
                        known = [struct.unpack("=Q", k)[0] for k in found.raw_keys()]
                    with _inner_for([*known, *ids]) as made:
                        outer.update(key, struct.pack("=i", made.fileno()), abi.BPF_EXIST)
                    return
            with _inner_for(ids) as made:
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
    def _inner(ident: int) -> Map | None:
        try:
            return Map.from_id(ident)
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

    def globals(self) -> Globals:
        """The policy's globals, mapped inside a ``with`` block. Only of a handle that ``install``
        gave: the Plan tells where they are."""
        if self.places is None:
            raise RestrictError("only the installer knows where the globals are.")
        return Globals(self.maps[".bss"].fileno(), self.maps[".bss"].value_size, self.places)

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


def _inner_for(ids: Sequence[int]) -> Map:
    """A new inner map with these mounts, and as large as it needs to be: the kernel compares type
    and sizes of an inner map with its pattern's, but not max_entries (5.10)."""
    needed = len(set(ids))
    room = _ROOM
    while room < needed:
        room *= 4
    if needed > MOUNTS_MOST:
        raise RestrictError(f"a namespace can have at most {MOUNTS_MOST} mounts.")
    made = create(
        abi.BPF_MAP_TYPE_HASH, 8, 4, min(room, MOUNTS_MOST),
        name=_INNER, flags=abi.BPF_F_NO_PREALLOC,
    )  # fmt: skip
    try:
        for ident in ids:
            made.update(struct.pack("=Q", ident), 1)
    except BaseException:
        made.close()
        raise
    return made


def _allow(inner: Map, ids: Sequence[int]) -> bool:
    """Add mounts; False if there is no room for all of them."""
    for ident in ids:
        try:
            inner.update(struct.pack("=Q", ident), 1)
        except KernelError as error:
            if error.errno != errno.E2BIG:
                raise
            return False
    return True
