# SPDX-License-Identifier: BSD-2-Clause
"""The newc cpio format (Documentation/driver-api/early-userspace/buffer-format.rst).

Archives are deterministic: inode numbers count from one, owner root, time zero.  The kernel
unpacks several archives one after another, so a guest's initramfs is put together from
segments that change at different rates.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

__all__ = ["Archive"]


class Archive:
    """A cpio archive under construction; parent directories are added by themselves."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._known: set[str] = {""}

    def _entry(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (
            self._inode, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(data),
            0, 0, *device, len(raw), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts.append(header + raw + bytes(-(len(header) + len(raw)) % 4))
        self._parts.append(data + bytes(-len(data) % 4))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add the directory *name* and those above it."""
        clean = name.strip("/")
        if clean in self._known:
            return
        parent = str(PurePosixPath(clean).parent)
        self.directory("" if parent == "." else parent)
        self._known.add(clean)
        self._entry(clean, stat.S_IFDIR | mode)

    def _parent(self, name: str) -> str:
        clean = name.strip("/")
        parent = str(PurePosixPath(clean).parent)
        self.directory("" if parent == "." else parent)
        return clean

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(self._parent(name), stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(self._parent(name), stat.S_IFLNK | 0o777, target.encode())

    def node(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._entry(self._parent(name), stat.S_IFCHR | mode, device=(major, minor))

    def tree(self, folder: Path, below: str = "") -> None:
        """Add everything in the host's *folder* under the name *below*."""
        for path in sorted(folder.rglob("*")):
            name = f"{below}/{path.relative_to(folder)}".strip("/")
            if path.is_symlink():
                self.symlink(name, str(path.readlink()))
            elif path.is_dir():
                self.directory(name, path.stat().st_mode & 0o7777)
            else:
                self.file(name, path.read_bytes(), path.stat().st_mode & 0o777)

    def finish(self) -> bytes:
        """The archive, padded to 512 bytes so that another one may follow."""
        trailer = Archive.__new__(Archive)
        trailer._parts, trailer._inode, trailer._known = [], -1, {""}
        trailer._entry("TRAILER!!!", 0)
        raw = b"".join(self._parts + trailer._parts)
        return raw + bytes(-len(raw) % 512)
