# SPDX-License-Identifier: BSD-2-Clause
"""What maps, programs, links and BTF objects have in common: an fd that one object owns."""

from __future__ import annotations

import fcntl
import os

from pybpf.errors import KernelError, UsageError
from pybpf.kernel.layout import cstr
from pybpf.sys import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

__all__ = ["KernelObject", "fd_of", "filesystem", "iterate_ids", "unlink_pin"]

_EEXIST = 17


class KernelObject:
    """An open object of the kernel. It owns ``fd`` and closes it on close(), at the end of a
    ``with`` block and when it is collected.

    KIND names it in errors; INFO and INFO_SIZE are its layout of BPF_OBJ_GET_INFO_BY_FD (4.13),
    INFO_OMITTED the fields that ``info`` leaves out (addresses that a caller passes in).
    """

    __slots__ = ("_name", "fd")
    KIND = "object"
    INFO: dict[str, tuple[int, int]] = {}
    INFO_SIZE = 0
    INFO_OMITTED: frozenset[str] = frozenset()
    GET_FD = -1

    def __init__(self, fd: int, name: str | None = None) -> None:
        self.fd = fd
        self._name = name

    @classmethod
    def from_fd(cls, fd: int, *, name: str | None = None) -> Self:
        """Take over ``fd``, after the kernel has confirmed that it is such an object.

        Raises KernelError or UsageError; ``fd`` then stays the caller's.
        """
        check_kind(fd, cls.KIND)
        return cls(fd, name)

    @classmethod
    def from_id(cls, ident: int, *, flags: int = 0) -> Self:
        """Open the object with this kernel-assigned id (4.13; links 5.8). Needs CAP_SYS_ADMIN.

        Raises KernelError (ENOENT: there is none), UsageError for what is no id.
        """
        if not 0 <= ident < 1 << 32:
            raise UsageError(f"{ident} is no id: those have 32 bits", kind=cls.KIND)
        try:
            return cls(bpf.fd_by_id(cls.GET_FD, ident, flags))
        except KernelError as error:
            raise error.at(**{cls.KIND: f"id {ident}"})  # noqa: B904

    @classmethod
    def from_pin(cls, path: str, *, flags: int = 0) -> Self:
        """Open what is pinned at ``path``; UsageError if it is another kind of object."""
        try:
            fd = bpf.obj_get(path, flags)
        except KernelError as error:
            raise error.at(path=path)  # noqa: B904
        try:
            check_kind(fd, cls.KIND)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @property
    def name(self) -> str:
        """The name given here, else the kernel's (at most 15 characters)."""
        if self._name is None:
            self._name = str(self.info().get("name", ""))
        return self._name

    @property
    def id(self) -> int:
        """The number that the kernel gave the object."""
        return bpf.get(self._raw_info(), self.INFO, "id")

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or the fd given away."""
        return self.fd < 0

    def fileno(self) -> int:
        """The fd, which stays the object's. Raises UsageError if it is closed."""
        if self.fd < 0:
            raise UsageError(f"the {self.KIND} {self._name or ''} is closed".replace("  ", " "))
        return self.fd

    def close(self) -> None:
        """Close the fd; the kernel frees the object unless something else holds it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def detach_fd(self) -> int:
        """Give the fd to the caller, who then owns it; this object is closed."""
        fd = self.fileno()
        self.fd = -1
        return fd

    def dup(self, *, inheritable: bool = False) -> int:
        """A further fd of the same object; inheritable: it stays open across exec."""
        command = fcntl.F_DUPFD if inheritable else fcntl.F_DUPFD_CLOEXEC
        return fcntl.fcntl(self.fileno(), command, 3)

    def pin(self, path: str) -> None:
        """BPF_OBJ_PIN at ``path`` on a bpf filesystem; the pin holds the object by itself."""
        try:
            bpf.obj_pin(self.fileno(), path)
        except KernelError as error:
            if error.errno != _EEXIST:
                error.hint = pin_hint(path) or error.hint
            raise error.at(**{self.KIND: self._name, "path": path})  # noqa: B904

    def _raw_info(self, fields: dict[str, int] | None = None) -> bytearray:
        info = bytearray(self.INFO_SIZE)
        for name, value in (fields or {}).items():
            bpf.put(info, self.INFO, name, value)
        try:
            bpf.obj_get_info(self.fileno(), info)
        except KernelError as error:
            raise error.at(**{self.KIND: self._name})  # noqa: B904
        return info

    def info(self) -> dict[str, Any]:
        """What the kernel says of the object: the integers of its struct bpf_…_info, and the name
        as text. Raises KernelError, and UsageError once it is closed."""
        return self._told(self._raw_info())

    def _told(self, info: bytearray) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for field, (start, size) in self.INFO.items():
            if field == "name":
                out[field] = cstr(info[start : start + size])
            elif field not in self.INFO_OMITTED:
                out[field] = bpf.get(info, self.INFO, field)
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        state = f"fd {self.fd}" if self.fd >= 0 else "closed"
        return f"<{type(self).__name__} {self._name or '?'} {state}>"


_KINDS = {"bpf-map": "map", "bpf-prog": "program", "bpf_link": "link", "bpf-link": "link",
          "btf": "btf"}  # fmt: skip


def kind_of(fd: int) -> str:
    """ "map", "program", "link", "btf"; for another fd what /proc says of it ("" without /proc).

    Raises KernelError for an fd that is not open.
    """
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        from pybpf.sys.syscalls import fail

        if os.path.isdir("/proc/self/fd"):
            raise fail("readlink", error.errno or 9, fd=fd) from None
        return ""
    return _KINDS.get(target.removeprefix("anon_inode:").strip("[]"), target)


def check_kind(fd: int, kind: str) -> None:
    """UsageError unless ``fd`` is a BPF object of ``kind`` ("map", "program", "link", "btf").

    Without /proc it passes: the first operation will tell.
    """
    found = kind_of(fd)
    if found not in (kind, ""):
        raise UsageError(f"fd {fd} is {found}, not a BPF {kind}")


def pin_hint(path: str) -> str | None:
    """Why a pin may have failed, read from the path and the mount table."""
    folder, last = os.path.split(path)
    if "." in last:
        return f"The bpf filesystem allows no dots in names: {last!r}."
    if not os.path.isdir(folder):
        return f"There is no directory {folder!r}."
    kind = filesystem(folder)
    if kind not in ("", "bpf"):
        return f"{folder!r} is on {kind}; pins need a filesystem of type bpf (mount -t bpf)."
    return None


def filesystem(folder: str) -> str:
    """The type of the filesystem that ``folder`` is on, by the mount table; "" without /proc."""
    best, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, mounted, fstype = line.split(" ")[:3]
                inside = folder == mounted or folder.startswith(mounted.rstrip("/") + "/")
                if inside and len(mounted) >= len(best):
                    best, kind = mounted, fstype
    except OSError:
        pass
    return kind


def unlink_pin(path: str) -> bool:
    """Remove the pin at ``path``; False if there is none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def fd_of(thing: Any) -> int:
    """The fd that a live object or a socket has, or the fd itself."""
    return thing if isinstance(thing, int) else int(thing.fileno())


def iterate_ids(cmd: int) -> Iterator[int]:
    """Ids of all live objects of a kind, ascending; ``cmd``: BPF_MAP_GET_NEXT_ID and so on."""
    ident: int | None = 0
    while (ident := bpf.next_id(cmd, ident or 0)) is not None:
        yield ident
