# SPDX-License-Identifier: BSD-2-Clause
"""A bpf filesystem with pins in it, in a mount namespace of its own, to be attacked.

    /run/t/top          tmpfs
    /run/t/top/mid      tmpfs
    /run/t/top/mid/pins bpffs: link (of a cgroup), map, program, dir/
    /run/t/free         an ordinary directory

Each attempt has a new one: what an attack destroys nobody else needs, and with the namespace
everything goes that an attack has made.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time

from pybpf.kernel.map import create
from pybpf.sys import abi, bpf, syscalls
from pybpf.sys.syscalls import Pointer
from tests.vm.userns import call
from tests.vm.waiting import WAIT_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BASE", "FREE", "MID", "PINS", "TOP", "Tree", "call", "clone", "in_namespace", "mount",
    "move_mount", "private", "propagation", "slave",
]  # fmt: skip

BASE = "/run/t"
TOP, MID, PINS, FREE = f"{BASE}/top", f"{BASE}/top/mid", f"{BASE}/top/mid/pins", f"{BASE}/free"
CGROUP = "/run/t-cgroup"
NEWNS = 0x20000
REC, PRIVATE, SLAVE, SHARED = 0x4000, 1 << 18, 1 << 19, 1 << 20
_AT_FDCWD = -100
_CGROUP_SKB, _INET_EGRESS = 8, 1
_RETURN_1 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> int:
    """mount(2)."""
    return call("mount", source, target, kind, flags, None)


def propagation(target: str, flags: int) -> int:
    """Change how mounts and unmounts spread."""
    return mount("none", target, None, flags)


def private() -> int:
    """A mount namespace of one's own, from which nothing spreads."""
    call("unshare", NEWNS)
    return propagation("/", REC | PRIVATE)


def slave() -> int:
    """A mount namespace to which things spread, but not back: what systemd's services get."""
    call("unshare", NEWNS)
    return propagation("/", REC | SLAVE)


def clone(path: str, recursive: bool = False) -> int:
    """open_tree(OPEN_TREE_CLONE): the fd of a detached copy."""
    return call("open_tree", _AT_FDCWD, path, 1 | (0x8000 if recursive else 0))


def move_mount(source: int | str, target: str, flags: int = 0) -> int:
    """move_mount(2) of a path, or of an fd."""
    if isinstance(source, int):
        return call("move_mount", source, "", _AT_FDCWD, target, 4 | flags)
    return call("move_mount", _AT_FDCWD, source, _AT_FDCWD, target, flags)


def in_namespace(enter: Callable[[], object], act: Callable[[], int]) -> int:
    """Do something in another mount namespace (made by ``enter``), with this one's processes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 255
        try:
            enter()
            try:
                act()
                code = 0
            except OSError as error:
                code = error.errno or 254
            os.write(writer, bytes([code]))
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 1)
    os.close(reader)
    os.waitpid(child, 0)
    if not answer:
        raise RuntimeError("the other namespace could not be made")
    if answer[0]:
        raise OSError(answer[0], os.strerror(answer[0]))
    return 0


def _program() -> int:
    insns = ctypes.create_string_buffer(_RETURN_1, len(_RETURN_1))
    licence = Pointer(b"GPL\0")
    return bpf.prog_load(
        {
            "prog_type": _CGROUP_SKB, "expected_attach_type": _INET_EGRESS, "insn_cnt": 2,
            "insns": ctypes.addressof(insns), "license": licence.address,
        }
    )  # fmt: skip


class Tree:
    """Builds it in the calling process' mount namespace, which must be its own.

    link, map, program: ids of what is pinned. link_fd stays open only if asked for (``keep``).
    """

    def __init__(self, keep: bool = False) -> None:
        for path in (BASE, CGROUP):
            os.makedirs(path, exist_ok=True)
        mount("tmpfs", BASE, "tmpfs")
        os.mkdir(FREE)
        for path, kind in ((TOP, "tmpfs"), (MID, "tmpfs"), (PINS, "bpf")):
            os.mkdir(path)
            mount(kind, path, kind)
        if not os.path.ismount(CGROUP):
            mount("cgroup2", CGROUP, "cgroup2")
        group = f"{CGROUP}/t{os.getpid()}-{len(os.listdir(CGROUP))}"
        os.mkdir(group)
        folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        self.program_fd = _program()
        self.link_fd = bpf.link_create(self.program_fd, folder, _INET_EGRESS)
        os.close(folder)
        bpf.obj_pin(self.program_fd, f"{PINS}/program")
        bpf.obj_pin(self.link_fd, f"{PINS}/link")
        with create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="t") as made:
            made.pin(f"{PINS}/map")
            self.map = made.id
        os.mkdir(f"{PINS}/dir")
        os.mkdir(f"{PINS}/empty")
        self.link = _id(self.link_fd)
        self.program = _id(self.program_fd)
        if not keep:
            os.close(self.link_fd)
            os.close(self.program_fd)

    def alive(self, wanted: bool = True) -> bool:
        """Whether the pinned link still is. It is freed after an RCU grace period, which is waited
        for where the link is not *wanted*."""

        end = time.monotonic() + (0.2 if wanted else WAIT_SECONDS)
        while exists("link", self.link):
            if time.monotonic() > end:
                return True
            time.sleep(0.02)
        return False


def _id(fd: int) -> int:
    info = bytearray(256)
    bpf.obj_get_info(fd, info)
    return int(struct.unpack_from("=I", info, 4)[0])


_NEXT = {
    "link": abi.BPF_LINK_GET_NEXT_ID, "map": abi.BPF_MAP_GET_NEXT_ID,
    "program": abi.BPF_PROG_GET_NEXT_ID,
}  # fmt: skip


def exists(kind: str, ident: int) -> bool:
    """Whether an object of this id is there; listing is nobody's secret."""
    return bpf.next_id(_NEXT[kind], ident - 1) == ident


def unlinkat(folder: int, name: str, flags: int = 0) -> int:
    """unlinkat(2) below the directory of an fd."""
    return call("unlinkat", folder, name, flags)


def umount(path: str, flags: int = 0) -> int:
    """umount2(2)."""
    return call("umount2", path, flags)


def handle(path: str) -> int:
    """name_to_handle_at(2) and open_by_handle_at(2)."""
    buffer = bytearray(struct.pack("=Ii", 128, 0) + bytes(128))
    number = bytearray(4)
    call("name_to_handle_at", _AT_FDCWD, path, buffer, number, 0)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    return syscalls.syscall("open_by_handle_at", folder, buffer, os.O_RDONLY)
