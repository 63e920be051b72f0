# SPDX-License-Identifier: BSD-2-Clause
"""What root, with all capabilities, tries against a guarded bpf filesystem."""

from __future__ import annotations

import errno
import os

from pybpf.sys import bpf
from tests.vm import probes_bpf, uring
from tests.vm.outcome import ALLOWED, Expected, refused
from tests.vm.pins_tree import (
    _AT_FDCWD,
    BASE,
    FREE,
    MID,
    NEWNS,
    PINS,
    PRIVATE,
    REC,
    SHARED,
    SLAVE,
    TOP,
    Tree,
    call,
    clone,
    handle,
    in_namespace,
    mount,
    move_mount,
    private,
    propagation,
    slave,
    umount,
    unlinkat,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ATTACKS", "Attack"]

REMOUNT, BIND, MOVE, RDONLY = 32, 4096, 8192, 1
DETACH, FORCE, EXPIRE = 2, 1, 4
UNLINKAT, RENAMEAT = 36, 35  # enum io_uring_op
EXCHANGE = 2
SET_GROUP, BENEATH = 0x100, 0x200
OTHER, WRAP = f"{BASE}/other", f"{BASE}/wrap"


class Attack:
    """One act on a tree; ``control`` is what comes of it where nothing is guarded.

    operation, reason: of the denial's event; "" where the act is allowed on a guarded tree as well.
    kills: it destroys the pins where nothing is guarded. keep: the attacker has fds of the link
    and the program, as by SCM_RIGHTS from the owner. also: what is reported before.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[Tree], object],
        operation: str = "",
        reason: str = "",
        *,
        kills: bool = False,
        control: Expected = ALLOWED,
        keep: bool = False,
        also: Sequence[tuple[str, str]] = (),
        lanes: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.act = act
        self.operation = operation
        self.reason = reason
        self.kills = kills
        self.control = control
        self.keep = keep
        self.also = also
        self.lanes = lanes


def _open(path: str, flags: int = os.O_RDONLY) -> int:
    fd = os.open(path, flags)
    os.close(fd)
    return 0


def _through_bind(_: Tree) -> None:
    mount(PINS, FREE, None, BIND)
    os.unlink(f"{FREE}/link")


def _through_copy(_: Tree) -> None:
    unlinkat(clone(PINS), "link")


def _below_chroot(_: Tree) -> None:
    os.chroot(MID)
    os.unlink("/pins/link")


def _from_namespace(_: Tree) -> None:
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    private()
    call("setns", home, NEWNS)
    umount(MID, DETACH)


def _spread_to_peer(_: Tree) -> None:
    propagation(TOP, REC | SHARED)
    call("unshare", NEWNS)
    umount(MID, DETACH)


def _copy(flags: int = 0) -> None:
    """/run/t/other is a peer of top, with copies of what is below."""
    propagation(TOP, REC | SHARED)
    os.mkdir(OTHER)
    mount(TOP, OTHER, None, BIND | flags)


def _spread_from_below(_: Tree) -> None:
    _copy(REC)
    umount(OTHER, DETACH)


def _spread_from_deeper(_: Tree) -> None:
    """The peer is not the mount that goes, but below it."""
    os.mkdir(WRAP)
    mount("tmpfs", WRAP, "tmpfs")
    os.mkdir(f"{WRAP}/x")
    propagation(TOP, REC | SHARED)
    mount(TOP, f"{WRAP}/x", None, BIND | REC)
    umount(WRAP, DETACH)


def _spread_from_master(_: Tree) -> None:
    _copy(REC)
    propagation(TOP, REC | SLAVE)
    umount(f"{OTHER}/mid", DETACH)


def _spread_from_below_master(_: Tree) -> None:
    _copy(REC)
    propagation(TOP, REC | SLAVE)
    umount(OTHER, DETACH)


def _joined_group(_: Tree) -> None:
    """A copy made while mid was private joins its peers, and is unmounted then."""
    os.mkdir(OTHER)
    mount(TOP, OTHER, None, BIND | REC)
    propagation(TOP, REC | SHARED)
    move_mount(MID, f"{OTHER}/mid", SET_GROUP)
    umount(f"{OTHER}/mid", DETACH)


def _joined_peer(_: Tree) -> None:
    """As before, by way of a third mount that is a peer of mid."""
    os.mkdir(OTHER)
    mount(TOP, OTHER, None, BIND | REC)
    propagation(TOP, REC | SHARED)
    mount(MID, FREE, None, BIND)
    move_mount(FREE, f"{OTHER}/mid", SET_GROUP)
    umount(f"{OTHER}/mid", DETACH)


def _spread_without_harm(_: Tree) -> None:
    """Only top is shared: mid has a child that does not go, so it stays."""
    propagation(TOP, SHARED)
    call("unshare", NEWNS)
    umount(MID, DETACH)


def _beneath(_: Tree) -> None:
    mount("tmpfs", FREE, "tmpfs")
    move_mount(FREE, MID, BENEATH)


def _remove_point(_: Tree) -> None:
    def act() -> int:
        umount(MID, DETACH)
        os.rmdir(MID)
        return 0

    in_namespace(private, act)


def _replace_point(_: Tree) -> None:
    os.mkdir(f"{TOP}/empty")

    def act() -> int:
        umount(MID, DETACH)
        os.rename(f"{TOP}/empty", MID)
        return 0

    in_namespace(private, act)


def _rename_point(_: Tree) -> None:
    def act() -> int:
        umount(MID, DETACH)
        os.rename(MID, f"{TOP}/away")
        return 0

    in_namespace(private, act)


def _move_then_umount(_: Tree) -> None:
    os.mkdir(WRAP)
    mount("tmpfs", WRAP, "tmpfs")
    os.mkdir(f"{WRAP}/x")
    propagation("/", REC | PRIVATE)
    mount(PINS, f"{WRAP}/x", None, MOVE)
    umount(WRAP, DETACH)


def _pivot(_: Tree) -> None:
    mount("tmpfs", FREE, "tmpfs")
    os.mkdir(f"{FREE}/old")
    call("pivot_root", FREE, f"{FREE}/old")


def _reconfigure(_: Tree) -> None:
    fd = call("fspick", _AT_FDCWD, PINS, 0)
    call("fsconfig", fd, 0, "ro", None, 0)
    call("fsconfig", fd, 7, None, None, 0)


def _container(_: Tree) -> None:
    """What a container's start does: a root of its own, the old one unmounted."""

    def act() -> int:
        mount("tmpfs", FREE, "tmpfs")
        os.mkdir(f"{FREE}/old")
        call("pivot_root", FREE, f"{FREE}/old")
        os.chdir("/")
        return umount("/old", DETACH)

    in_namespace(private, act)


def _slave_copy(_: Tree) -> None:
    _copy(REC)
    propagation(OTHER, REC | SLAVE)
    umount(OTHER, DETACH)


def _private_copy(_: Tree) -> None:
    os.mkdir(OTHER)
    mount(TOP, OTHER, None, BIND | REC)
    umount(OTHER, DETACH)


def _second(act: Callable[[str], object]) -> Callable[[Tree], None]:
    """The act on another bpf filesystem, beside the guarded one."""

    def run(_: Tree) -> None:
        mount("bpf", FREE, "bpf")
        os.mkdir(f"{FREE}/dir")
        act(FREE)

    return run


def _get_by_id(kind: str) -> Callable[[Tree], object]:
    return lambda tree: probes_bpf._open_by_id(kind, getattr(tree, kind))


_OPEN = ("open", "guarded")
_RENAME = ("rename", "guarded")
_CREATE = ("create", "guarded")
_ATTRIBUTES = ("attributes", "guarded")
_SPREAD = ("umount", "propagation")
_COVERS = ("mount", "covers")

ATTACKS = [
    # Files.
    Attack("unlink", lambda _: os.unlink(f"{PINS}/link"), "unlink", "guarded", kills=True),
    Attack("unlink_map", lambda _: os.unlink(f"{PINS}/map"), "unlink", "guarded"),
    Attack(
        "unlink_by_fd",
        lambda _: unlinkat(os.open(PINS, os.O_RDONLY), "link"),
        "unlink",
        "guarded",
        kills=True,
    ),
    Attack("unlink_through_bind", _through_bind, "unlink", "guarded", kills=True),
    Attack("unlink_through_copy", _through_copy, "unlink", "guarded", kills=True),
    Attack("unlink_below_chroot", _below_chroot, "unlink", "guarded", kills=True),
    Attack(
        "unlink_by_io_uring",
        lambda _: uring.submit(UNLINKAT, f"{PINS}/link"),
        "unlink",
        "guarded",
        kills=True,
    ),
    Attack("rmdir", lambda _: os.rmdir(f"{PINS}/empty"), "rmdir", "guarded"),
    Attack(
        "rename_over",
        lambda _: os.rename(f"{PINS}/program", f"{PINS}/link"),
        *_RENAME,
        kills=True,
    ),
    Attack("rename_away", lambda _: os.rename(f"{PINS}/link", f"{PINS}/dir/x"), *_RENAME),
    Attack(
        "rename_exchange",
        lambda _: call("renameat2", _AT_FDCWD, f"{PINS}/link", _AT_FDCWD, f"{PINS}/map", EXCHANGE),
        *_RENAME,
    ),
    Attack("mkdir", lambda _: os.mkdir(f"{PINS}/new"), *_CREATE),
    Attack("symlink", lambda _: os.symlink("x", f"{PINS}/new"), *_CREATE),
    # fs.protected_hardlinks asks whether the file may be opened for writing, and goes on.
    Attack("link", lambda _: os.link(f"{PINS}/link", f"{PINS}/new"), *_CREATE, also=[_OPEN]),
    Attack(
        "obj_pin", lambda tree: bpf.obj_pin(tree.program_fd, f"{PINS}/new"), *_CREATE, keep=True
    ),
    Attack("chmod", lambda _: os.chmod(f"{PINS}/link", 0o666), *_ATTRIBUTES),
    Attack("chmod_root", lambda _: os.chmod(PINS, 0o777), *_ATTRIBUTES),
    Attack("chown", lambda _: os.chown(f"{PINS}/link", 5, 5), *_ATTRIBUTES),
    Attack("utime", lambda _: os.utime(f"{PINS}/link"), *_ATTRIBUTES),
    Attack("setxattr", lambda _: os.setxattr(PINS, "trusted.x", b"1"), *_ATTRIBUTES, lanes=["7.3"]),
    Attack("get_link", lambda _: bpf.obj_get(f"{PINS}/link"), *_OPEN),
    Attack("get_map", lambda _: bpf.obj_get(f"{PINS}/map"), *_OPEN),
    Attack("get_map_read_only", lambda _: bpf.obj_get(f"{PINS}/map", 8), *_OPEN),
    Attack("get_program", lambda _: bpf.obj_get(f"{PINS}/program"), *_OPEN),
    Attack("open", lambda _: _open(f"{PINS}/link"), *_OPEN, control=refused(errno.EIO)),
    Attack("list", lambda _: os.listdir(PINS)),
    Attack("stat", lambda _: os.stat(f"{PINS}/link")),
    Attack("file_handle", lambda _: handle(f"{PINS}/link"), control=refused(errno.EOPNOTSUPP)),
    # The mount itself.
    Attack("umount", lambda _: umount(PINS), "umount", "mount", kills=True),
    Attack("umount_lazy", lambda _: umount(PINS, DETACH), "umount", "mount", kills=True),
    Attack("umount_force", lambda _: umount(PINS, FORCE), "umount", "mount", kills=True),
    Attack(
        "umount_expire",
        lambda _: umount(PINS, EXPIRE),
        "umount",
        "mount",
        control=refused(errno.EAGAIN),
    ),
    Attack("umount_parent", lambda _: umount(MID, DETACH), "umount", "ancestor", kills=True),
    Attack("umount_ancestor", lambda _: umount(TOP, DETACH), "umount", "ancestor", kills=True),
    Attack("umount_after_setns", _from_namespace, "umount", "ancestor", kills=True),
    # By propagation.
    Attack("spread_to_peer", _spread_to_peer, *_SPREAD, kills=True),
    Attack("spread_from_below", _spread_from_below, *_SPREAD, kills=True),
    Attack("spread_from_deeper", _spread_from_deeper, *_SPREAD, kills=True),
    Attack("spread_from_master", _spread_from_master, *_SPREAD, kills=True),
    Attack("spread_from_below_master", _spread_from_below_master, *_SPREAD, kills=True),
    Attack("joined_group", _joined_group, "move", "ancestor", kills=True),
    Attack("joined_peer", _joined_peer, *_SPREAD, kills=True),
    # By the directory it is mounted on.
    Attack("remove_mount_point", _remove_point, "rmdir", "mount_point", kills=True),
    Attack("replace_mount_point", _replace_point, "rename", "mount_point", kills=True),
    Attack("rename_mount_point", _rename_point, "rename", "mount_point"),
    # Moved or hidden.
    Attack("move", lambda _: move_mount(PINS, FREE), "move", "mount"),
    Attack("move_parent", lambda _: move_mount(MID, FREE), "move", "ancestor"),
    Attack("move_the_old_way", lambda _: mount(PINS, FREE, None, MOVE), "move", "unknown"),
    Attack("move_then_umount", _move_then_umount, "move", "unknown", kills=True),
    Attack("pivot_root", _pivot, "pivot", "ancestor"),
    Attack("cover", lambda _: mount("tmpfs", PINS, "tmpfs"), *_COVERS),
    Attack("cover_inside", lambda _: mount(FREE, f"{PINS}/dir", None, BIND), *_COVERS),
    Attack("cover_parent", lambda _: mount("tmpfs", MID, "tmpfs"), *_COVERS),
    Attack("cover_ancestor", lambda _: mount("tmpfs", TOP, "tmpfs"), *_COVERS),
    Attack("cover_the_new_way", lambda _: move_mount(clone(FREE), PINS), *_COVERS),
    Attack("mount_beneath", _beneath, *_COVERS),
    Attack("remount", lambda _: mount("none", PINS, None, REMOUNT | RDONLY), "remount", "guarded"),
    Attack("reconfigure", _reconfigure, "remount", "guarded"),
    Attack(
        "remount_bind",
        lambda _: mount("none", PINS, None, REMOUNT | BIND | RDONLY),
        "remount",
        "mount",
    ),
    # Objects.
    Attack("map_by_id", _get_by_id("map"), "bpf_map", "guard_map"),
    Attack("program_by_id", _get_by_id("program"), "bpf_program", "guard_program"),
    Attack("link_by_id", _get_by_id("link"), "bpf_link", "guard_link"),
    Attack(
        "detach",
        lambda tree: bpf.link_detach(tree.link_fd),
        "link_change",
        "guard_link",
        keep=True,
    ),
    Attack(
        "update",
        lambda tree: bpf.link_update(tree.link_fd, tree.program_fd),
        "link_change",
        "guard_link",
        keep=True,
    ),
    # What stays allowed.
    Attack("spread_without_harm", _spread_without_harm),
    Attack("umount_copy", _private_copy),
    Attack("umount_slave_copy", _slave_copy),
    Attack("umount_in_private_namespace", lambda _: in_namespace(private, lambda: umount(TOP, 2))),
    Attack("umount_in_slave_namespace", lambda _: in_namespace(slave, lambda: umount(TOP, 2))),
    Attack(
        "move_in_private_namespace",
        lambda _: in_namespace(private, lambda: mount(PINS, FREE, None, MOVE)),
    ),
    Attack("container", _container),
    Attack("mount_elsewhere", lambda _: mount("tmpfs", FREE, "tmpfs")),
    Attack("bind_elsewhere", lambda _: mount(PINS, FREE, None, BIND)),
    Attack("copy_elsewhere", lambda _: move_mount(clone(TOP, True), FREE)),
    Attack("make_shared", lambda _: propagation(TOP, REC | SHARED)),
    Attack("second_umount", _second(lambda path: umount(path))),
    Attack("second_umount_lazy", _second(lambda path: umount(path, DETACH))),
    Attack("second_rmdir", _second(lambda path: os.rmdir(f"{path}/dir"))),
    Attack("second_rename", _second(lambda path: os.rename(f"{path}/dir", f"{path}/x"))),
    Attack("second_mkdir", _second(lambda path: os.mkdir(f"{path}/x"))),
    Attack("second_chmod", _second(lambda path: os.chmod(f"{path}/dir", 0o777))),
    Attack("second_remount", _second(lambda path: mount("x", path, None, REMOUNT | RDONLY))),
    Attack("second_cover", _second(lambda path: mount("tmpfs", path, "tmpfs"))),
    Attack("second_cover_inside", _second(lambda path: mount("tmpfs", f"{path}/dir", "tmpfs"))),
]
