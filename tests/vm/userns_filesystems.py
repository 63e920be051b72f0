# SPDX-License-Identifier: BSD-2-Clause
"""Filesystems of other kinds, for the policy on user namespaces: ext4, btrfs, bpffs, cgroup2,
idmapped mounts, overlays of the host."""

from __future__ import annotations

import errno
import functools
import os
import struct

from tests.vm import userns
from tests.vm.outcome import ALLOWED, refused
from tests.vm.scenario import ALL_LANES, Content, Drive, Guest, Scenario
from tests.vm.userns_acts import ACTS, create, prepare_folder
from tests.vm.userns_policy import (
    check,
    events,
    managed,
    put,
    refused_once_managed,
    reported,
    the_namespace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DISK", "add_to", "drives", "show"]

DISK, BPFFS, CGROUP, OVERLAY = "/run/disk", "/run/bpffs", "/run/cgroup2", "/run/overlaid"
BTRFS = "/run/btrfs"
_CASES: list[Callable[[Guest], None]] = []


def _case(function: Callable[[Guest], None]) -> Callable[[Guest], None]:
    _CASES.append(function)
    return function


def add_to(scenario: Scenario) -> None:
    """These cases, and what they need, for a scenario that has ``drives()``."""
    scenario.setup(prepare_disk)
    for function in _CASES:
        scenario.case()(function)


def drives() -> dict[str, Drive]:
    """An ext4 image, which is copied to a tmpfs so that it can be written to, and a btrfs."""
    return {
        "disk": Drive({"file": bytes(1 << 20)}, filesystem="ext4", signature="none"),
        "btrfs": Drive(_btrfs_files(), signature="none"),
    }


def _btrfs_files() -> dict[str, Content]:
    """An empty btrfs (mkfs.btrfs --mixed of btrfs-progs 6.2 on 16 MiB), and the modules of each
    lane in the order in which they are loaded."""
    import lzma
    from pathlib import Path

    files: dict[str, Content] = {
        "image": lambda: lzma.decompress((Path(__file__).parent / "btrfs.img.xz").read_bytes())
    }
    for lane in ALL_LANES:
        files[f"{lane}.modules"] = functools.partial(_modules, lane)
    return files


def _modules(lane: str) -> bytes:
    """The modules one after the other, each with its length before it; on the host only."""
    from tools.guest.lanes import lane_of
    from tools.guest.packages import kernel

    found = kernel(lane_of(lane))
    parts = [found.module(name) for name in found.closure(["btrfs"])]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _loop(guest: Guest, image: str, copy: str) -> str:
    """A loop device of a copy of ``image`` on a tmpfs."""
    with open(image, "rb") as source, open(copy, "wb") as file:
        file.write(source.read())
    control = os.open("/dev/loop-control", os.O_RDWR)
    number = userns.call("ioctl", control, 0x4C82, 0)  # LOOP_CTL_GET_FREE
    os.close(control)
    loop, backing = os.open(f"/dev/loop{number}", os.O_RDWR), os.open(copy, os.O_RDWR)
    userns.call("ioctl", loop, 0x4C00, backing)  # LOOP_SET_FD
    guest.state[copy] = loop
    return f"/dev/loop{number}"


def prepare_disk(guest: Guest) -> None:
    device = _loop(guest, guest.node("disk"), f"{userns.IDMAPPED_SOURCE}/.disk")
    guest.mount(device, DISK, "ext4", 0)
    os.chmod(DISK, 0o777)
    show(guest, DISK)
    made = the_namespace(guest).attempt(prepare_folder, DISK)
    assert ALLOWED.matches(made), str(made)


def show(guest: Guest, path: str) -> None:
    """Make a mount visible in the namespace: a clone of it is moved there."""
    tree = userns.call("open_tree", -100, path, 1 | os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            userns.call("setns", the_namespace(guest).mnt, userns.NEWNS)
            os.makedirs(path, exist_ok=True)
            userns.call("move_mount", tree, "", -100, path, 4)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(tree)
    assert os.waitpid(child, 0)[1] == 0, f"{path} cannot be shown"


def _on_disk(name: str) -> None:
    def case(guest: Guest) -> None:
        check(guest, name, DISK)
        owners = {os.lstat(entry.path).st_uid for entry in os.scandir(DISK)}
        guest.note(f"owners on the disk: {sorted(owners)}")

    case.__name__ = f"{name}_on_ext4"
    _case(case)


for _name in (
    "mkdir", "create", "tmpfile_and_link", "symlink", "link", "chown", "whiteout", "bind",
    "mknod", "acl_user", "acl_default", "capability",
):  # fmt: skip
    _on_disk(_name)


def _subvolume(number: int, source: str = "") -> Callable[[str], int]:
    def act(name: str) -> int:
        folder = os.open(BTRFS, os.O_RDONLY | os.O_DIRECTORY)
        fd = os.open(f"{BTRFS}/{source}", os.O_RDONLY) if source else 0
        # struct btrfs_ioctl_vol_args, or _v2 with 48 bytes between fd and name
        gap = 48 if number in (23, 24) else 0
        data = bytearray(struct.pack("=q", fd) + bytes(gap) + name.encode()).ljust(4096, b"\0")
        try:
            return userns.call("ioctl", folder, 1 << 30 | 4096 << 16 | 0x94 << 8 | number, data)
        finally:
            os.close(folder)

    return act


@_case
def btrfs_subvolumes(guest: Guest) -> None:
    """An ioctl that makes a directory, which no path hook sees."""
    guest.mount(guest.node("btrfs"), "/run/btrfs_files")
    with open(f"/run/btrfs_files/{guest.lane}.modules", "rb") as file:
        while length := file.read(4):
            part = os.memfd_create("module")
            os.write(part, file.read(struct.unpack("<I", length)[0]))
            readable = os.open(f"/proc/self/fd/{part}", os.O_RDONLY)
            os.close(part)
            try:
                userns.call("finit_module", readable, "", 0)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
            os.close(readable)
    device = _loop(guest, "/run/btrfs_files/image", f"{userns.IDMAPPED_SOURCE}/.btrfs")
    guest.mount(device, BTRFS, "btrfs", 0)
    os.chmod(BTRFS, 0o777)
    show(guest, BTRFS)
    acts = {
        "subvol_create": _subvolume(14),
        "subvol_create_v2": _subvolume(24),
        "snap_create": _subvolume(1, "subvol_create0"),
        "snap_create_v2": _subvolume(23, "subvol_create0"),
    }
    with managed(guest) as (policy, namespace):
        for name, act in acts.items():
            policy.reset_by_inode(namespace.inode)
            guest.expect(namespace.attempt(act, f"{name}0"), ALLOWED)
            assert os.stat(f"{BTRFS}/{name}0").st_uid == userns.FIRST
            put(guest, policy)
            events(policy)
            guest.expect(namespace.attempt(act, f"{name}1"), refused())
            reported(guest, policy, "subvolume", "mount")
            assert not os.path.exists(f"{BTRFS}/{name}1")
            put(guest, policy, BTRFS)
            guest.expect(namespace.attempt(act, f"{name}2"), ALLOWED)
            act(f"{name}3")  # outside


@_case
def bpffs_pin(guest: Guest) -> None:
    """A member that was given the fd of a map pins it in the host's bpffs."""
    import ctypes

    from tests.vm.probes_bpf import bpf

    guest.mount("bpf", BPFFS, "bpf", 0, "mode=0777")
    show(guest, BPFFS)
    fd = bpf(0, struct.pack("<5I", 2, 4, 4, 1, 0))[0]  # BPF_MAP_CREATE of an array

    def pin(name: str) -> int:
        text = ctypes.create_string_buffer(f"{BPFFS}/{name}".encode())
        return bpf(6, struct.pack("<QII", ctypes.addressof(text), fd, 0))[0]

    with managed(guest) as (policy, namespace):
        refused_once_managed(guest, policy, "mknod", "pin", pin)
        put(guest, policy, BPFFS)
        guest.expect(namespace.attempt(pin, "pin2"), ALLOWED)


@_case
def delegated_cgroup(guest: Guest) -> None:
    """The directory of a cgroup belongs to who makes it: cgroup2 must be listed."""
    guest.mount("cgroup2", CGROUP, "cgroup2", 0)
    os.makedirs(f"{CGROUP}/delegated", exist_ok=True)
    os.chown(f"{CGROUP}/delegated", userns.FIRST, userns.FIRST)
    show(guest, CGROUP)
    act = ACTS["mkdir"].function
    with managed(guest) as (policy, namespace):
        refused_once_managed(guest, policy, "mkdir", "c", act, f"{CGROUP}/delegated")
        put(guest, policy, CGROUP)
        guest.expect(namespace.attempt(act, f"{CGROUP}/delegated", "c2"), ALLOWED)


@_case
def idmapped_mount(guest: Guest) -> None:
    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(create, userns.IDMAPPED, "idmapped0"), refused())
        policy.put_by_fd(namespace.user, [guest.state["idmapped"]])
        guest.expect(namespace.attempt(create, userns.IDMAPPED, "idmapped1"), ALLOWED)
        # What is left on the disk belongs to no transient id.
        assert os.stat(f"{userns.IDMAPPED_SOURCE}/idmapped1").st_uid == 0


@_case
def acl_on_idmapped_mount(guest: Guest) -> None:
    """What is stored names no id of the namespace's, so it is allowed, listed or not."""

    def act(name: str) -> int:
        from tests.vm.userns_acts import ACL

        os.setxattr(f"{userns.IDMAPPED}/{name}", "system.posix_acl_access", ACL["user"])
        return 0

    with managed(guest) as (policy, namespace):
        guest.expect(namespace.attempt(create, userns.IDMAPPED, "with_acl"), ALLOWED)
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act, "with_acl"), ALLOWED)
        assert not events(policy)


@_case
def acl_that_names_nobody(guest: Guest) -> None:
    """It is a mode in other words."""

    def act() -> int:
        from tests.vm.userns_acts import ACL

        os.setxattr(f"{userns.FOREIGN}/.link7", "system.posix_acl_access", ACL["plain"])
        os.removexattr(f"{userns.FOREIGN}/.link7", "system.posix_acl_access")
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)


@_case
def other_attributes(guest: Guest) -> None:
    """user.* and capabilities of the initial namespace's root hold no id of the namespace's."""

    def act() -> int:
        os.setxattr(f"{DISK}/.link7", "user.anything", b"x" * 24)
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
        os.setxattr(f"{DISK}/.link6", "security.capability", value)


@_case
def overlay_of_the_host(guest: Guest) -> None:
    """An overlay that the host mounted, seen by the namespace: its own mount is judged. Writing to
    a file below copies it up with its owner, which is none of the namespace's."""
    base = f"{userns.IDMAPPED_SOURCE}/overlaid"
    for part in ("lower", "upper", "work"):
        os.makedirs(f"{base}/{part}")
    with open(f"{base}/lower/file", "w") as file:
        file.write("lower")
    os.chmod(f"{base}/lower/file", 0o666)
    os.chmod(f"{base}/upper", 0o777)
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    guest.mount("overlay", OVERLAY, "overlay", 0, options)
    os.chmod(OVERLAY, 0o777)
    show(guest, OVERLAY)

    def copy_up() -> int:
        with open(f"{OVERLAY}/file", "r+") as file:
            file.write("upper")
        return 0

    with managed(guest) as (policy, namespace):
        refused_once_managed(guest, policy, "mknod", "o", create, OVERLAY)
        guest.expect(namespace.attempt(copy_up), ALLOWED)
        assert os.stat(f"{base}/upper/file").st_uid == 0
        assert not events(policy)
