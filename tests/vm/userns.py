# SPDX-License-Identifier: BSD-2-Clause
"""A real user namespace in a guest; what its members try is in userns_acts."""

from __future__ import annotations

import os
import struct

from pybpf.errors import KernelError
from pybpf.sys import syscalls
from tests.vm import probes
from tests.vm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ALLOWED_DIR",
    "FIRST",
    "FOREIGN",
    "IDMAPPED",
    "IDMAPPED_SOURCE",
    "NEWIPC",
    "NEWNS",
    "NEWUSER",
    "OWN",
    "Namespace",
    "call",
    "idmapped",
]

FIRST = 0x70000  # the first of the transient ids
COUNT = 0x10000
FOREIGN, ALLOWED_DIR, OWN = "/run/foreign", "/run/allowed", "/run/own"
IDMAPPED, IDMAPPED_SOURCE = "/run/idmapped", "/run/idmapped_source"
NEWNS, NEWIPC, NEWUSER = 0x20000, 0x8000000, 0x10000000
_AT_FDCWD = -100


def call(name: str, *words: int | bytes | str | bytearray | None) -> int:
    """A system call; OSError if it is refused."""
    try:
        return syscalls.syscall(name, *words)
    except KernelError as error:
        raise OSError(error.errno, str(error)) from None


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
