# SPDX-License-Identifier: BSD-2-Clause
"""The newc cpio format, as the kernel unpacks an initramfs from it.

Written here and not by cpio(1): ``cpio --reproducible`` still takes owner, mode and time from a
staged tree, so device nodes and owners need root and equal bytes need a cleaned tree; the format
is 13 hexadecimal numbers, a name and the data. Equal entries give equal bytes: names are sorted,
inode numbers count from one, owner is root, the time is the beginning of 1970.

Source: Documentation/driver-api/early-userspace/buffer-format.rst, init/initramfs.c.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from restrict.errors import RestrictError

__all__ = ["Entry", "archive"]

_NAME_MOST = 4096  # init/initramfs.c: an entry with a longer name (PATH_MAX) is skipped silently
_BLOCK = 512
_FIELD_MOST = 0xFFFFFFFF


class Entry:
    """One file, directory, symbolic link or device of an archive.

    name: without a leading slash. data: content, or the target of a symbolic link.
    """

    __slots__ = ("data", "device", "mode", "name")

    def __init__(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self.name = name
        self.mode = mode
        self.data = data
        self.device = device

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {stat.filemode(self.mode)}, {len(self.data)} bytes)"

    @classmethod
    def file(cls, name: str, data: bytes, mode: int = 0o644) -> Entry:
        """A regular file."""
        return cls(name, stat.S_IFREG | mode, data)

    @classmethod
    def directory(cls, name: str, mode: int = 0o755) -> Entry:
        """A directory; those above an entry are added by ``archive`` where they are missing."""
        return cls(name, stat.S_IFDIR | mode)

    @classmethod
    def symlink(cls, name: str, target: str) -> Entry:
        """A symbolic link."""
        return cls(name, stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def character_device(cls, name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
        """A character device."""
        return cls(name, stat.S_IFCHR | mode, device=(major, minor))


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, nlink, mtime, size, device of the file (two numbers), device that a
    # node stands for (two numbers), length of the name, checksum (only the 070702 format has one)
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    if max(fields) > _FIELD_MOST or len(name) > _NAME_MOST:
        raise RestrictError("the cpio format cannot hold this file.", file=entry.name)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive, padded so that another one may follow; entries may come in any order.

    Raises RestrictError for a name that is absolute, has empty or dot parts, or occurs twice.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        if any(part in ("", ".", "..") for part in entry.name.split("/")) or "\0" in entry.name:
            raise RestrictError(f"{entry.name!r} is no plain name in an archive.")
        if entry.name in found:
            raise RestrictError("this file would be in the archive twice.", file=entry.name)
        found[entry.name] = entry
    for name in list(found):
        for parent in _parents(name):
            above = found.setdefault(parent, Entry.directory(parent))
            if not stat.S_ISDIR(above.mode):
                raise RestrictError(f"{parent} is no directory, so this has no place.", file=name)
    # Sorted by parts, so that a directory comes right before what is in it.
    order = sorted(found.values(), key=lambda entry: entry.name.split("/"))
    raw = b"".join(_record(entry, inode) for inode, entry in enumerate(order, 1))
    raw += _record(Entry("TRAILER!!!", 0), 0)
    return raw + bytes(-len(raw) % _BLOCK)
