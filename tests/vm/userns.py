# SPDX-License-Identifier: BSD-2-Clause
"""A real user namespace in a guest, and what its members try in it."""

from __future__ import annotations

import _socket
import os
import stat
import struct

from pybpf.errors import KernelError
from pybpf.sys import syscalls
from tests.vm import probes
from tests.vm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ACTS", "ALLOWED_DIR", "FIRST", "FOREIGN", "IDMAPPED", "OWN", "Namespace", "call"]

FIRST = 0x70000  # the first of the transient ids
COUNT = 0x10000
FOREIGN, ALLOWED_DIR, OWN = "/run/foreign", "/run/allowed", "/run/own"
IDMAPPED, IDMAPPED_SOURCE = "/run/idmapped", "/run/idmapped_source"
NEWNS, NEWUSER = 0x20000, 0x10000000
_AT_FDCWD = -100
_PREPARED = 8


def call(name: str, *words: int | bytes | str | bytearray | None) -> int:
    """A system call; OSError if it is refused."""
    try:
        return syscalls.syscall(name, *words)
    except KernelError as error:
        raise OSError(error.errno, str(error)) from None


# ── acts: each takes a directory and a name that is new there ──


def _touch(path: str) -> int:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.close(fd)
    return 0


def _mkdir(folder: str, name: str) -> int:
    os.mkdir(f"{folder}/{name}")
    return 0


def _mknod(folder: str, name: str) -> int:
    os.mknod(f"{folder}/{name}", stat.S_IFIFO | 0o600)
    return 0


def _create(folder: str, name: str) -> int:
    return _touch(f"{folder}/{name}")


def _tmpfile(folder: str, name: str) -> int:
    os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
    return 0


def _symlink(folder: str, name: str) -> int:
    os.symlink("target", f"{folder}/{name}")
    return 0


def _link(folder: str, name: str) -> int:
    os.link(f"{folder}/.{name}", f"{folder}/{name}")
    return 0


def _chown(folder: str, name: str) -> int:
    os.chown(f"{folder}/.{name}", 5, 5)
    return 0


def _whiteout(folder: str, name: str) -> int:
    return call(
        "renameat2", _AT_FDCWD, f"{folder}/.{name}", _AT_FDCWD, f"{folder}/{name}", 1 << 2
    )


def _bind(folder: str, name: str) -> int:
    with _Socket(_socket.AF_UNIX, _socket.SOCK_STREAM) as sock:
        sock.bind(f"{folder}/{name}")
    return 0


class _Socket(_socket.socket):
    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _queue(folder: str, name: str) -> int:
    os.close(call("mq_open", name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None))
    return 0


def _overlay(folder: str, name: str) -> int:
    """The upper layer and the work directory are in ``folder``."""
    syscalls_mount = f"lowerdir=/usr,upperdir={folder}/upper,workdir={folder}/work,userxattr"
    return call("mount", "overlay", "/mnt", "overlay", 0, syscalls_mount)


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


#: Name → (the act, the event's operation). The folder of "queue" means nothing.
ACTS: dict[str, tuple[Callable[[str, str], int], str]] = {
    "mkdir": (_mkdir, "mkdir"),
    "mknod": (_mknod, "mknod"),
    "create": (_create, "mknod"),
    "bind": (_bind, "mknod"),
    "tmpfile": (_tmpfile, "tmpfile"),
    "symlink": (_symlink, "symlink"),
    "link": (_link, "link"),
    "chown": (_chown, "chown"),
    "whiteout": (_whiteout, "whiteout"),
    "overlay": (_overlay, "overlay"),
    "overlay_by_fsconfig": (_overlay_by_fsconfig, "overlay"),
}
QUEUE = _queue
_NEED_FILE = ("link", "chown", "whiteout")


def prepare_folder(folder: str) -> int:
    """Files that some acts need, owned by the member that calls this."""
    for act in _NEED_FILE:
        for number in range(_PREPARED):
            _touch(f"{folder}/.{act}{number}")
    os.mkdir(f"{folder}/upper")
    os.mkdir(f"{folder}/work")
    return 0


class Namespace:
    """A user and a mount namespace, kept by a process of its own; ids from FIRST on.

    It has mounted a tmpfs of its own at OWN.
    """

    def __init__(self, *, mount: bool = True) -> None:
        ready_r, ready_w = os.pipe()
        go_r, go_w = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(go_w)
                call("unshare", NEWUSER | (NEWNS if mount else 0))
                os.write(ready_w, b"1")
                os.read(go_r, 1)
                if mount:
                    os.setgroups([])
                    os.setgid(0)
                    os.setuid(0)
                    call("mount", "tmpfs", OWN, "tmpfs", 0, "mode=0777")
                os.write(ready_w, b"2")
                os.read(go_r, 1)  # until the parent lets go
            finally:
                os._exit(0)
        os.close(go_r)
        os.close(ready_w)
        self._go = go_w
        assert os.read(ready_r, 1) == b"1", "the namespace cannot be made"
        for kind in ("uid", "gid"):
            with open(f"/proc/{self.pid}/{kind}_map", "w") as file:
                file.write(f"0 {FIRST} {COUNT}")
        os.write(go_w, b"g")
        assert os.read(ready_r, 1) == b"2", "the namespace's process has died"
        os.close(ready_r)
        self.user = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        self.mnt = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.user).st_ino

    def path(self, path: str) -> int:
        """An O_PATH fd of a path as the namespace sees it."""
        return os.open(f"/proc/{self.pid}/root{path}", os.O_PATH | os.O_CLOEXEC)

    def enter(self, nested: int = 0) -> None:
        """Become its root (and a member of ``nested`` namespaces below)."""
        call("setns", self.user, NEWUSER)
        call("setns", self.mnt, NEWNS)
        os.setgid(0)
        os.setuid(0)
        for _ in range(nested):
            call("unshare", NEWUSER)
            call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is ours again
            for file, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
                # Not open(…, "w"): its O_CREAT asks path_mknod even for a file that is there.
                fd = os.open(f"/proc/self/{file}", os.O_WRONLY)
                os.write(fd, text.encode())
                os.close(fd)

    def attempt(
        self, function: Callable[..., int], *arguments: object, nested: int = 0
    ) -> Outcome:
        """What comes of an act of a member."""

        def body(act: Callable[..., int]) -> None:
            self.enter(nested)
            act(function, *arguments)

        return probes.attempt(body)

    def end(self) -> None:
        """Let the namespace go."""
        for fd in (self.user, self.mnt, self._go):
            os.close(fd)
        os.waitpid(self.pid, 0)


def idmapped(namespace: Namespace) -> int:
    """An idmapped clone of IDMAPPED_SOURCE, mounted at IDMAPPED in the namespace; its fd."""
    tree = call("open_tree", _AT_FDCWD, IDMAPPED_SOURCE, 1 | os.O_CLOEXEC)
    attributes = struct.pack("=4Q", 0x100000, 0, 0, namespace.user)  # MOUNT_ATTR_IDMAP
    call("mount_setattr", tree, "", 0x1000, attributes, len(attributes))
    child = os.fork()
    if child == 0:
        try:
            call("setns", namespace.mnt, NEWNS)
            call("move_mount", tree, "", _AT_FDCWD, IDMAPPED, 4)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the idmapped mount cannot be moved"
    return tree
