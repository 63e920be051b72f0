# SPDX-License-Identifier: BSD-2-Clause
"""Mounts: the mount table, mounting, and leaving the initramfs (switch root).

Sources: proc_pid_mountinfo(5), mount(2), Documentation/filesystems/ramfs-rootfs-initramfs.rst.
"""

from __future__ import annotations

import os
import stat

from pybpf.sys import syscalls
from restrict.errors import RestrictError, system_error

__all__ = [
    "MS_BIND",
    "MS_MOVE",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_RDONLY",
    "Mount",
    "check_new_root",
    "ensure",
    "in_initramfs",
    "mount",
    "mount_of",
    "mounts",
    "parse_mountinfo",
    "root_cgroup",
    "switch_root",
    "unmount",
    "usr_root",
]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_MOVE = 4096, 8192
MNT_DETACH = 2


class Mount:
    """One line of /proc/PID/mountinfo."""

    __slots__ = (
        "dev", "fstype", "id", "mount_options", "parent", "root", "source", "super_options",
        "target",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        parent: int,
        dev: int,
        root: str,
        target: str,
        mount_options: str,
        fstype: str,
        source: str,
        super_options: str,
    ) -> None:
        self.id = id
        self.parent = parent
        self.dev = dev
        self.root = root
        self.target = target
        self.mount_options = mount_options
        self.fstype = fstype
        self.source = source
        self.super_options = super_options

    def __repr__(self) -> str:
        return f"Mount({self.target!r}, {self.fstype!r}, {os.major(self.dev)}:{os.minor(self.dev)})"


def _unescape(text: str) -> str:
    r"""Undo the kernel's \040-style escapes of blank, tab, newline, backslash and '#'."""
    if "\\" not in text:
        return text
    out = []
    i = 0
    while i < len(text):
        digits = text[i + 1 : i + 4]
        if text[i] == "\\" and len(digits) == 3 and all(c in "01234567" for c in digits):
            out.append(chr(int(digits, 8)))
            i += 4
        else:
            out.append(text[i])
            i += 1
    return "".join(out)


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in the order of the file (later ones cover earlier ones)."""
    found = []
    for line in text.removesuffix("\n").split("\n"):  # names may have all that splitlines() ends
        left, separator, right = line.partition(" - ")
        words = left.split(" ")
        tail = right.split(" ")
        try:
            if not separator:
                raise ValueError(line)
            major, _, minor = words[2].partition(":")
            found.append(
                Mount(
                    int(words[0]),
                    int(words[1]),
                    os.makedev(int(major), int(minor)),
                    _unescape(words[3]),
                    _unescape(words[4]),
                    words[5],
                    tail[0],
                    _unescape(tail[1]),
                    tail[2] if len(tail) > 2 else "",
                )
            )
        except (ValueError, LookupError, OverflowError):
            raise RestrictError(f"the line {line!r} of a mount table cannot be read") from None
    return found


def mounts(pid: int | str = "self", *, proc: str = "/proc") -> list[Mount]:
    """The mount table of a process."""
    path = f"{proc}/{pid}/mountinfo"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return parse_mountinfo(file.read())
    except OSError as e:
        hint = "Mount procfs on /proc."
        raise system_error(
            "the mount table cannot be read", e, "open", hint=hint, file=path
        ) from None


def mount_of(path: str, table: list[Mount]) -> Mount | None:
    """The mount that ``path`` (absolute, without links) lies on."""
    best: Mount | None = None
    for entry in table:
        prefix = entry.target.rstrip("/") + "/"
        covers = path == entry.target or path.startswith(prefix)
        if covers and (best is None or len(entry.target) >= len(best.target)):
            best = entry
    return best


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); raises KernelError that names target, type and source."""
    syscalls.mount(source, target, fstype, flags, data)


def unmount(target: str, *, lazy: bool = False) -> None:
    """umount2(2); lazy: detach now, clean up when nobody uses it any more."""
    syscalls.umount2(target, MNT_DETACH if lazy else 0)


def ensure(fstype: str, target: str, flags: int = 0, data: str = "") -> bool:
    """Mount a virtual filesystem unless it is there already; True if mounted now."""
    try:
        os.makedirs(target, exist_ok=True)
    except OSError as e:
        raise system_error("the mount point cannot be made", e, "mkdir", mount=target) from None
    # /proc itself may be what is missing: then there is no mount table to ask.
    readable = target != "/proc" or os.path.exists("/proc/self/mountinfo")
    if readable and any(m.target == target and m.fstype == fstype for m in mounts()):
        return False
    mount(fstype, target, fstype, flags, data)
    return True


def _delete_below(fd: int, device: int) -> None:
    """Delete what is below the directory ``fd`` on this device; does not follow links."""
    for name in os.listdir(fd):
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if info.st_dev != device:
                continue
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(name, dir_fd=fd)
                continue
            inner = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
            )
            try:
                if os.fstat(inner).st_dev == device:
                    _delete_below(inner, device)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=fd)
        except OSError:  # a mount point or a race: memory stays used, nothing worse
            continue


_MOVED = ("/dev", "/proc", "/sys", "/run")


def check_new_root(new_root: str, moved: tuple[str, ...] = _MOVED) -> None:
    """Refuse a new root that ``switch_root`` could not enter; changes nothing."""
    table = mounts()
    here = os.stat("/")
    try:
        there = os.stat(new_root)
    except OSError as e:
        raise RestrictError(
            f"the new root cannot be read: {os.strerror(e.errno or 0)}.", mount=new_root
        ) from None
    if not any(m.target == new_root for m in table) or here.st_dev == there.st_dev:
        raise RestrictError("the new root is not a mount point.", mount=new_root)
    for path in moved:
        on = any(m.target == path for m in table)
        # A link would lead the mount to another place, of the initramfs perhaps.
        if on and (os.path.islink(new_root + path) or not os.path.isdir(new_root + path)):
            raise RestrictError(
                f"the new root has no directory {path}, so {path} cannot be moved there.",
                mount=new_root,
                hint=f"Add an empty directory {path} to the image.",
            )


def root_cgroup() -> int:
    """An fd of the cgroup2 hierarchy's root, by a mount of our own that is gone at once.

    In early boot there is no other mount of it. Raises KernelError.
    """
    folder = f"/run/restrict-cgroup-{os.getpid()}"
    try:
        os.mkdir(folder, 0o700)
    except OSError as e:
        hint = "Mount a tmpfs on /run."
        raise system_error(
            "no directory to mount cgroup2 on", e, "mkdir", hint=hint, path=folder
        ) from None
    try:
        mount("cgroup2", folder, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            unmount(folder, lazy=True)
    finally:
        os.rmdir(folder)


# What / has when everything else is in /usr: file-hierarchy(7), and Debian's merged /usr.
_USR_LINKS = ("bin", "sbin", "lib", "lib64")
_USR_FOLDERS = (
    ("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("root", 0o700), ("run", 0o755),
    ("sys", 0o555), ("tmp", 0o1777), ("usr", 0o755), ("var", 0o755),
)  # fmt: skip


def usr_root(root: str, *, links: bool = False) -> None:
    """Make what is missing of a root directory that has its programs in /usr.

    links: make the links into /usr too, once it is mounted (those whose target is there).
    Raises KernelError; RestrictError where /usr is a link, which would lead the verified /usr to
    another place (nobody has signed this root). A read-only root that has everything is fine.
    """
    if os.path.islink(f"{root}/usr"):
        raise RestrictError(
            "its /usr is a symbolic link.", mount=root, hint="Make it an empty directory."
        )
    try:
        for name, mode in () if links else _USR_FOLDERS:
            if not os.path.isdir(f"{root}/{name}"):
                os.mkdir(f"{root}/{name}")
                os.chmod(f"{root}/{name}", mode)  # whatever the umask
        for name in _USR_LINKS if links else ():
            if os.path.isdir(f"{root}/usr/{name}") and not os.path.lexists(f"{root}/{name}"):
                os.symlink(f"usr/{name}", f"{root}/{name}")
    except OSError as e:
        raise system_error(
            "the root directory cannot be completed", e, "mkdir", mount=e.filename
        ) from None


def in_initramfs(table: list[Mount] | None = None) -> bool:
    """Whether / is the kernel's first root (rootfs: a ramfs or tmpfs), not a disk's."""
    entry = mount_of("/", mounts() if table is None else table)
    return entry is not None and entry.fstype in ("rootfs", "ramfs", "tmpfs")


def switch_root(new_root: str, *, moved: tuple[str, ...] = _MOVED) -> None:
    """Make ``new_root`` the root of this process and delete the initramfs.

    The mounts in ``moved`` go along. All Python modules that are needed afterwards must have
    been imported before: the files they come from are deleted. Anonymous device numbers are
    reused at once, so trust in the initramfs' device must have been withdrawn before.

    Raises RestrictError before anything changed when / is no initramfs or new_root unusable.
    """
    table = mounts()
    if not in_initramfs(table):
        raise RestrictError(
            "/ is no initramfs, so its content will not be deleted and the root not switched.",
            mount="/",
        )
    check_new_root(new_root, moved)
    old = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(old).st_dev
        for path in moved:
            if any(m.target == path for m in table):
                mount(path, new_root + path, "", MS_MOVE)
        os.chdir(new_root)
        mount(".", "/", "", MS_MOVE)
        os.chroot(".")
        os.chdir("/")
        _delete_below(old, device)
    finally:
        os.close(old)
