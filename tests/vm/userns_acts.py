# SPDX-License-Identifier: BSD-2-Clause
"""What a member of a user namespace does to leave something of its ids behind."""

from __future__ import annotations

import _socket
import errno
import os
import resource
import stat
import struct

from tests.vm import uring
from tests.vm.userns import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ACL", "ACTS", "Act", "create", "prepare_folder", "queue"]

_AT_FDCWD = -100
_PREPARED = 8  # one for each attempt of `check`
_SETGID = ".setgid"


def _touch(path: str) -> int:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    return 0


# ── each takes a directory and a name that is new there ──


def create(folder: str, name: str) -> int:
    return _touch(f"{folder}/{name}")


def _create_by_openat2(folder: str, name: str) -> int:
    how = struct.pack("=3Q", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, 0)
    os.close(call("openat2", _AT_FDCWD, f"{folder}/{name}", how, len(how)))
    return 0


def _create_in_setgid_folder(folder: str, name: str) -> int:
    return _touch(f"{folder}/{_SETGID}/{name}")


def _create_with_another_fsuid(folder: str, name: str) -> int:
    call("setfsgid", 7)
    call("setfsuid", 7)
    return _touch(f"{folder}/{name}")


def _create_by_uring(folder: str, name: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(uring.submit(uring.OPENAT, f"{folder}/{name}", length=0o600, flags=flags))
    return 0


def _core_dump(folder: str, name: str) -> int:
    """The kernel writes the file, with the process' credentials; core_pattern is "core.%e"."""
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CORE, (1 << 24, 1 << 24))
            call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
            call("prctl", 15, name, 0, 0, 0)  # PR_SET_NAME: core_pattern has %e
            os.abort()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), "it did not even crash"
    if not os.WCOREDUMP(status):
        raise OSError(errno.EPERM, "there is no core file")
    return 0


def _mkdir(folder: str, name: str) -> int:
    os.mkdir(f"{folder}/{name}")
    return 0


def _mkdir_by_uring(folder: str, name: str) -> int:
    return uring.submit(uring.MKDIRAT, f"{folder}/{name}", length=0o755)


def _node(kind: int) -> Callable[[str, str], int]:
    def act(folder: str, name: str) -> int:
        os.mknod(f"{folder}/{name}", kind | 0o600)
        return 0

    return act


def _tmpfile(folder: str, name: str) -> int:
    os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
    return 0


def _tmpfile_and_link(folder: str, name: str) -> int:
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    call("linkat", _AT_FDCWD, f"/proc/self/fd/{fd}", _AT_FDCWD, f"{folder}/{name}", 0x400)
    os.close(fd)
    return 0


def _symlink(folder: str, name: str) -> int:
    os.symlink("target", f"{folder}/{name}")
    return 0


def _symlink_by_uring(folder: str, name: str) -> int:
    return uring.submit(uring.SYMLINKAT, "target", other=f"{folder}/{name}")


def _link(folder: str, name: str) -> int:
    os.link(f"{folder}/.{name}", f"{folder}/{name}")
    return 0


def _link_by_uring(folder: str, name: str) -> int:
    return uring.submit(
        uring.LINKAT, f"{folder}/.{name}", other=f"{folder}/{name}", length=_AT_FDCWD
    )


def _chown(folder: str, name: str) -> int:
    os.chown(f"{folder}/.{name}", 5, 5)
    return 0


def _lchown(folder: str, name: str) -> int:
    os.lchown(f"{folder}/.{name}", 5, 5)
    return 0


def _fchown(folder: str, name: str) -> int:
    fd = os.open(f"{folder}/.{name}", os.O_RDONLY)
    os.fchown(fd, 5, -1)
    os.close(fd)
    return 0


def _fchownat(folder: str, name: str) -> int:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    os.chown(f".{name}", -1, 5, dir_fd=fd, follow_symlinks=False)
    os.close(fd)
    return 0


def _whiteout(folder: str, name: str) -> int:
    return call(
        "renameat2", _AT_FDCWD, f"{folder}/.{name}", _AT_FDCWD, f"{folder}/{name}", 1 << 2
    )


def _bind(folder: str, name: str) -> int:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.bind(f"{folder}/{name}")
    finally:
        sock.close()
    return 0


def _entries(*named: tuple[int, int]) -> bytes:
    """An ACL with the three entries that there always are, a mask, and named ones."""
    none = 0xFFFFFFFF
    all_entries = [(1, 6, none), *((tag, 6, ident) for tag, ident in named), (4, 4, none)]
    all_entries += [(0x10, 6, none)] if named else []
    all_entries += [(0x20, 4, none)]
    all_entries.sort()
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in all_entries)


#: Names uid 0 of the namespace, its gid 0, and nobody in particular.
ACL = {"user": _entries((2, 0)), "group": _entries((8, 0)), "plain": _entries()}


def _acl(kind: str, attribute: str = "access") -> Callable[[str, str], int]:
    def act(folder: str, name: str) -> int:
        path = f"{folder}/.{name}" if attribute == "access" else f"{folder}/.folder_{name}"
        os.setxattr(path, f"system.posix_acl_{attribute}", ACL[kind])
        return 0

    return act


def _capability(folder: str, name: str) -> int:
    """The kernel adds the namespace's root to what is written (VFS_CAP_REVISION_3)."""
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(f"{folder}/.{name}", "security.capability", value)
    return 0


def _overlay(folder: str, name: str) -> int:
    """The upper layer and the work directory are in ``folder``."""
    options = f"lowerdir=/usr,upperdir={folder}/upper,workdir={folder}/work,userxattr"
    return call("mount", "overlay", "/mnt", "overlay", 0, options)


def _overlay_by_fsconfig(folder: str, name: str) -> int:
    fd = call("fsopen", "overlay", 1)
    for key, value in (
        ("lowerdir", "/usr"), ("upperdir", f"{folder}/upper"), ("workdir", f"{folder}/work"),
    ):  # fmt: skip
        call("fsconfig", fd, 1, key, value, 0)
    call("fsconfig", fd, 0, "userxattr", None, 0)
    call("fsconfig", fd, 6, None, None, 0)
    os.close(call("fsmount", fd, 1, 0))
    return 0


def queue(folder: str, name: str) -> int:
    os.close(call("mq_open", name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None))
    return 0


class Act:
    """One way, and what the policy says of it on a foreign filesystem.

    listed: allowed on a listed mount. nested: possible from a namespace below. file: needs one that
    is there (``.NAME<n>``, owned by the namespace's root). outside: processes outside can do it.
    """

    def __init__(
        self,
        function: Callable[[str, str], int],
        operation: str,
        reason: str = "mount",
        *,
        listed: bool = True,
        nested: bool = True,
        file: bool = False,
        outside: bool = True,
        disk: bool = True,
    ) -> None:
        self.function = function
        self.operation = operation
        self.reason = reason
        self.listed = listed
        self.nested = nested
        self.file = file
        self.outside = outside and not file
        self.disk = disk


ACTS: dict[str, Act] = {
    "mkdir": Act(_mkdir, "mkdir"),
    "mkdir_by_uring": Act(_mkdir_by_uring, "mkdir"),
    "mknod": Act(_node(stat.S_IFIFO), "mknod"),
    "mknod_file": Act(_node(stat.S_IFREG), "mknod"),
    "mknod_socket": Act(_node(stat.S_IFSOCK), "mknod"),
    "mknod_whiteout": Act(_node(stat.S_IFCHR), "mknod"),  # 0:0: for anybody (5.8)
    "create": Act(create, "mknod"),
    "create_by_openat2": Act(_create_by_openat2, "mknod"),
    "create_by_uring": Act(_create_by_uring, "mknod"),
    "create_in_setgid_folder": Act(_create_in_setgid_folder, "mknod"),
    "create_with_another_fsuid": Act(_create_with_another_fsuid, "mknod", nested=False,
                                     outside=False),
    "core_dump": Act(_core_dump, "mknod", outside=False),
    "bind": Act(_bind, "mknod"),
    "tmpfile": Act(_tmpfile, "tmpfile"),
    "tmpfile_and_link": Act(_tmpfile_and_link, "tmpfile"),
    "symlink": Act(_symlink, "symlink"),
    "symlink_by_uring": Act(_symlink_by_uring, "symlink"),
    "link": Act(_link, "link", file=True),
    "link_by_uring": Act(_link_by_uring, "link", file=True),
    "chown": Act(_chown, "chown", nested=False, file=True),
    "lchown": Act(_lchown, "chown", nested=False, file=True),
    "fchown": Act(_fchown, "chown", nested=False, file=True),
    "fchownat": Act(_fchownat, "chown", nested=False, file=True),
    "whiteout": Act(_whiteout, "whiteout", file=True),
    "acl_user": Act(_acl("user"), "acl", "ids", listed=False, file=True),
    "acl_group": Act(_acl("group"), "acl", "ids", listed=False, file=True),
    "acl_default": Act(_acl("user", "default"), "acl", "ids", listed=False, file=True),
    "capability": Act(_capability, "capability", "ids", listed=False, file=True),
    "overlay": Act(_overlay, "overlay", "upper", listed=False, nested=False, outside=False,
                   disk=False),
    "overlay_by_fsconfig": Act(_overlay_by_fsconfig, "overlay", "upper", listed=False,
                               nested=False, outside=False, disk=False),
}  # fmt: skip


def prepare_folder(folder: str) -> int:
    """Files that some acts need, owned by the member that calls this."""
    for name, act in ACTS.items():
        if act.file:
            for number in range(_PREPARED):
                _touch(f"{folder}/.{name}{number}")
                if name == "acl_default":
                    os.mkdir(f"{folder}/.folder_{name}{number}")
    os.mkdir(f"{folder}/{_SETGID}")
    os.chmod(f"{folder}/{_SETGID}", 0o2777)
    os.mkdir(f"{folder}/upper")
    os.mkdir(f"{folder}/work")
    return 0
