# SPDX-License-Identifier: BSD-2-Clause
"""User namespaces whose members leave no inode behind: real namespaces, real mounts.

Each act of userns_acts is tried unmanaged (the control), managed, nested, on a listed mount, on a
mount of the namespace's own, and unmanaged again. `limit_` cases show what is not refused.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from tests.vm import userns
from tests.vm.outcome import ALLOWED, refused
from tests.vm.scenario import ALL_LANES, Content, Drive, Guest, Scenario
from tests.vm.userns_acts import ACTS, create, prepare_folder, queue
from tests.vm.userns_policy import (
    ENFORCING,
    EXPEDITED,
    PLANS,
    add,
    check,
    events,
    installed,
    plan_without,
    plans,
    prepare,
    put,
    reported,
    the_namespace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DISK, BPFFS, CGROUP, OVERLAY = "/run/disk", "/run/bpffs", "/run/cgroup2", "/run/overlaid"
BTRFS = "/run/btrfs"


def btrfs_files() -> dict[str, Content]:
    """An empty btrfs (mkfs.btrfs --mixed of btrfs-progs 6.2 on 16 MiB), and the modules of each
    lane in the order in which they are loaded."""
    import lzma
    from pathlib import Path

    files: dict[str, Content] = {
        "image": lambda: lzma.decompress((Path(__file__).parent / "btrfs.img.xz").read_bytes())
    }
    for lane in ALL_LANES:
        files[f"{lane}.modules"] = lambda lane=lane: _modules(lane)
    return files


def _modules(lane: str) -> bytes:
    """The modules one after the other, each with its length before it; on the host only."""
    from tools.guest.lanes import lane_of
    from tools.guest.packages import kernel

    found = kernel(lane_of(lane))
    parts = [found.module(name) for name in found.closure(["btrfs"])]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


# An ext4 image is copied to a tmpfs, so that it can be written to.
namespaces = Scenario(
    "userns", memory=1024, append=EXPEDITED, timeout=600,
    drives={
        "disk": Drive({"file": bytes(1 << 20)}, filesystem="ext4", signature="none"),
        "btrfs": Drive(btrfs_files(), signature="none"),
    },
)  # fmt: skip
namespaces.setup(prepare)
add(namespaces)

# No helper that reads memory by address works then; the policy must not need one.
lockdown = Scenario("userns_lockdown", append=f"lockdown=confidentiality {EXPEDITED}", timeout=600)
lockdown.setup(prepare)
add(lockdown)

toothless = Scenario(
    "userns_toothless", append=EXPEDITED, timeout=600,
    drives={"plans": plans(toothless=lambda: plan_without(*ENFORCING))},
)  # fmt: skip
add(toothless, toothless=True)


@toothless.setup
def prepare_toothless(guest: Guest) -> None:
    guest.mount(guest.node("plans"), PLANS)
    prepare(guest, f"{PLANS}/toothless")


@lockdown.case()
def is_locked_down(guest: Guest) -> None:
    with open("/sys/kernel/security/lockdown") as file:
        assert "[confidentiality]" in file.read()


# ── filesystems of other kinds ──


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


@namespaces.setup
def prepare_disk(guest: Guest) -> None:
    device = _loop(guest, guest.node("disk"), f"{userns.IDMAPPED_SOURCE}/.disk")
    guest.mount(device, DISK, "ext4", 0)
    os.chmod(DISK, 0o777)
    _show(guest, DISK)
    made = the_namespace(guest).attempt(prepare_folder, DISK)
    assert ALLOWED.matches(made), str(made)


def _show(guest: Guest, path: str) -> None:
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

    namespaces.case(name=f"{name}_on_ext4")(case)


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


@namespaces.case()
def btrfs_subvolumes(guest: Guest) -> None:
    """An ioctl that makes a directory, which no path hook sees."""
    namespace = the_namespace(guest)
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
    _show(guest, BTRFS)
    acts = {
        "subvol_create": _subvolume(14),
        "subvol_create_v2": _subvolume(24),
        "snap_create": _subvolume(1, "subvol_create0"),
        "snap_create_v2": _subvolume(23, "subvol_create0"),
    }
    with installed() as policy:
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
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def bpffs_pin(guest: Guest) -> None:
    """A member that was given the fd of a map pins it in the host's bpffs."""
    import ctypes

    from tests.vm.probes_bpf import bpf

    namespace = the_namespace(guest)
    guest.mount("bpf", BPFFS, "bpf", 0, "mode=0777")
    _show(guest, BPFFS)
    fd = bpf(0, struct.pack("<5I", 2, 4, 4, 1, 0))[0]  # BPF_MAP_CREATE of an array

    def pin(name: str) -> int:
        text = ctypes.create_string_buffer(f"{BPFFS}/{name}".encode())
        return bpf(6, struct.pack("<QII", ctypes.addressof(text), fd, 0))[0]

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(pin, "pin0"), ALLOWED)
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(pin, "pin1"), refused())
        reported(guest, policy, "mknod", "mount")
        put(guest, policy, BPFFS)
        guest.expect(namespace.attempt(pin, "pin2"), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def delegated_cgroup(guest: Guest) -> None:
    """The directory of a cgroup belongs to who makes it: cgroup2 must be listed."""
    namespace = the_namespace(guest)
    guest.mount("cgroup2", CGROUP, "cgroup2", 0)
    os.makedirs(f"{CGROUP}/delegated", exist_ok=True)
    os.chown(f"{CGROUP}/delegated", userns.FIRST, userns.FIRST)
    _show(guest, CGROUP)
    act = ACTS["mkdir"].function
    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act, f"{CGROUP}/delegated", "c0"), ALLOWED)
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act, f"{CGROUP}/delegated", "c1"), refused())
        reported(guest, policy, "mkdir", "mount")
        put(guest, policy, CGROUP)
        guest.expect(namespace.attempt(act, f"{CGROUP}/delegated", "c2"), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def idmapped_mount(guest: Guest) -> None:
    namespace = the_namespace(guest)
    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(create, userns.IDMAPPED, "idmapped0"), refused())
        policy.put_by_fd(namespace.user, [guest.state["idmapped"]])
        guest.expect(namespace.attempt(create, userns.IDMAPPED, "idmapped1"), ALLOWED)
        # What is left on the disk belongs to no transient id.
        assert os.stat(f"{userns.IDMAPPED_SOURCE}/idmapped1").st_uid == 0
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def acl_on_idmapped_mount(guest: Guest) -> None:
    """What is stored names no id of the namespace's, so it is allowed, listed or not."""
    namespace = the_namespace(guest)

    def act(name: str) -> int:
        from tests.vm.userns_acts import ACL

        os.setxattr(f"{userns.IDMAPPED}/{name}", "system.posix_acl_access", ACL["user"])
        return 0

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(create, userns.IDMAPPED, "with_acl"), ALLOWED)
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act, "with_acl"), ALLOWED)
        assert not events(policy)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def acl_that_names_nobody(guest: Guest) -> None:
    """It is a mode in other words."""
    namespace = the_namespace(guest)

    def act() -> int:
        from tests.vm.userns_acts import ACL

        os.setxattr(f"{userns.FOREIGN}/.link7", "system.posix_acl_access", ACL["plain"])
        os.removexattr(f"{userns.FOREIGN}/.link7", "system.posix_acl_access")
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def other_attributes(guest: Guest) -> None:
    """user.* and capabilities of the initial namespace's root hold no id of the namespace's."""
    namespace = the_namespace(guest)

    def act() -> int:
        os.setxattr(f"{DISK}/.link7", "user.anything", b"x" * 24)
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
        os.setxattr(f"{DISK}/.link6", "security.capability", value)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def overlay_of_the_host(guest: Guest) -> None:
    """An overlay that the host mounted, seen by the namespace: its own mount is judged. Writing to
    a file below copies it up with its owner, which is none of the namespace's."""
    namespace = the_namespace(guest)
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
    _show(guest, OVERLAY)

    def copy_up() -> int:
        with open(f"{OVERLAY}/file", "r+") as file:
            file.write("upper")
        return 0

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(create, OVERLAY, "o0"), ALLOWED)
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(create, OVERLAY, "o1"), refused())
        reported(guest, policy, "mknod", "mount")
        guest.expect(namespace.attempt(copy_up), ALLOWED)
        assert os.stat(f"{base}/upper/file").st_uid == 0
        assert not events(policy)
        policy.reset_by_inode(namespace.inode)


# ── what is no file ──


@namespaces.case()
def message_queue(guest: Guest) -> None:
    namespace = the_namespace(guest)
    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        events(policy)
        guest.expect(namespace.attempt(queue, "", "queue0"), ALLOWED)
        put(guest, policy)
        guest.expect(namespace.attempt(queue, "", "queue1"), refused())
        reported(guest, policy, "mqueue", "mount")

        def apart(name: str) -> int:
            userns.call("unshare", userns.NEWIPC)
            return queue("", name)

        guest.expect(namespace.attempt(apart, "queue2"), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def system_v_objects(guest: Guest) -> None:
    """Of the initial IPC namespace they would stay; of the namespace's own they may be made."""
    namespace = the_namespace(guest)
    acts = {
        "shmget": lambda: userns.call("shmget", 0, 4096, 0o1600),
        "msgget": lambda: userns.call("msgget", 0, 0o1600),
        "semget": lambda: userns.call("semget", 0, 1, 0o1600),
    }
    with installed() as policy:
        for name, act in acts.items():

            def apart(act: object = act) -> int:
                userns.call("unshare", userns.NEWIPC)
                return int(act())  # type: ignore[operator]

            policy.reset_by_inode(namespace.inode)
            guest.expect(namespace.attempt(act), ALLOWED)
            put(guest, policy)
            events(policy)
            guest.note(name)
            guest.expect(namespace.attempt(act), refused())
            reported(guest, policy, "ipc", "ipc")
            guest.expect(namespace.attempt(act, nested=1), refused())
            reported(guest, policy, "ipc", "ipc")
            guest.expect(namespace.attempt(apart), ALLOWED)
            assert not events(policy)
            act()  # outside
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def set_groups(guest: Guest) -> None:
    namespace = the_namespace(guest)

    def act() -> int:
        os.setgroups([5])
        return 0

    with installed() as policy:
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        put(guest, policy, deny_setgroups=True)
        guest.expect(namespace.attempt(act), refused())
        reported(guest, policy, "setgroups", "setgroups")
        assert [e.deny_setgroups for e in policy.namespaces()] == [True]
        put(guest, policy, deny_setgroups=False)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


# ── ways round ──


@namespaces.case()
def another_mount_namespace_has_other_mounts(guest: Guest) -> None:
    """A member that copies its mount namespace has copies of the mounts, which are not listed."""
    namespace = the_namespace(guest)

    def act(name: str) -> int:
        userns.call("unshare", userns.NEWNS)
        return create(userns.ALLOWED_DIR, name)

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act, "copied0"), ALLOWED)
        put(guest, policy, userns.ALLOWED_DIR)
        events(policy)
        guest.expect(namespace.attempt(act, "copied1"), refused())
        reported(guest, policy, "mknod", "mount")
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def folder_from_outside(guest: Guest) -> None:
    """An fd of the host's own mount of a listed filesystem: that mount is not the listed one."""
    namespace = the_namespace(guest)
    for path in (userns.FOREIGN, userns.ALLOWED_DIR):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        name = os.path.basename(path)

        def act(name: str, fd: int = fd) -> int:
            os.mkdir(name, dir_fd=fd)
            return 0

        with installed() as policy:
            policy.reset_by_inode(namespace.inode)
            guest.expect(namespace.attempt(act, f"by_fd0{name}"), ALLOWED)
            put(guest, policy, userns.ALLOWED_DIR)
            events(policy)
            guest.expect(namespace.attempt(act, f"by_fd1{name}"), refused())
            reported(guest, policy, "mkdir", "mount")
            policy.reset_by_inode(namespace.inode)
        os.close(fd)


@namespaces.case()
def filesystem_of_a_namespace_below(guest: Guest) -> None:
    namespace = the_namespace(guest)

    def act() -> int:
        userns.call("unshare", userns.NEWNS)
        userns.call("mount", "tmpfs", "/mnt", "tmpfs", 0, "mode=0777")
        return create("/mnt", "below")

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act, nested=3), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def filesystem_of_another_namespace(guest: Guest) -> None:
    """Two delegated namespaces: neither creates on a filesystem that the other has mounted."""
    namespace = the_namespace(guest)
    other = userns.Namespace()
    fd = other.path(userns.OWN)

    def act(name: str) -> int:
        os.mkdir(name, dir_fd=fd)
        return 0

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act, "other0"), ALLOWED)
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act, "other1"), refused())
        reported(guest, policy, "mkdir", "mount")
        policy.put_by_fd(other.user)
        guest.expect(other.attempt(create, userns.OWN, "other2"), ALLOWED)
        guest.expect(namespace.attempt(act, "other3"), refused())
        policy.reset_by_inode(namespace.inode)
        policy.reset_by_inode(other.inode)
    os.close(fd)
    other.end()


@namespaces.case()
def borrowed_credentials(guest: Guest) -> None:
    """What counts is the namespace of the credentials in force, which decide the owner too."""
    namespace = the_namespace(guest)

    def enter_and_come_back() -> int:
        # A process that has not entered is no member, whatever ids it has taken.
        os.setgroups([])
        os.setresgid(userns.FIRST, userns.FIRST, userns.FIRST)
        os.setresuid(userns.FIRST, userns.FIRST, userns.FIRST)
        return create(userns.FOREIGN, "borrowed")

    from tests.vm.outcome import trial
    from tests.vm.probes import attempt

    with installed() as policy:
        put(guest, policy)
        guest.expect(attempt(lambda act: act(enter_and_come_back)), ALLOWED)
        policy.reset_by_inode(namespace.inode)
    assert os.stat(f"{userns.FOREIGN}/borrowed").st_uid == userns.FIRST
    assert ALLOWED.matches(trial(os.unlink, f"{userns.FOREIGN}/borrowed"))


@namespaces.case()
def opening_by_handle(guest: Guest) -> None:
    """open_by_handle_at opens what there is, and for members not even that."""
    namespace = the_namespace(guest)

    def act() -> int:
        handle = bytearray(struct.pack("=Ii", 128, 0) + bytes(128))
        mount = bytearray(8)
        userns.call("name_to_handle_at", -100, f"{userns.FOREIGN}/.link7", handle, mount, 0)
        folder = os.open(userns.FOREIGN, os.O_RDONLY | os.O_DIRECTORY)
        return userns.call("open_by_handle_at", folder, handle, os.O_RDWR)

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(act), refused())
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act), refused())
        assert not events(policy), "the kernel itself refuses"
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def moving_is_allowed(guest: Guest) -> None:
    """rename and exchange leave each inode to its owner, and make none."""
    namespace = the_namespace(guest)

    def act() -> int:
        first, second = f"{userns.FOREIGN}/.link7", f"{userns.FOREIGN}/.whiteout7"
        userns.call("renameat2", -100, first, -100, second, 2)  # RENAME_EXCHANGE
        os.rename(first, f"{first}.moved")
        os.rename(f"{first}.moved", first)
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def across_mounts(guest: Guest) -> None:
    """Nothing comes from its own filesystem to a foreign one: the kernel refuses (EXDEV)."""
    namespace = the_namespace(guest)

    def act(call: object) -> int:
        create(userns.OWN, "across")
        try:
            call(f"{userns.OWN}/across", f"{userns.FOREIGN}/across")  # type: ignore[operator]
        finally:
            os.unlink(f"{userns.OWN}/across")
        return 0

    with installed() as policy:
        put(guest, policy)
        for call in (os.rename, os.link):
            guest.expect(namespace.attempt(act, call), refused(errno.EXDEV))
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def opening_what_exists_is_allowed(guest: Guest) -> None:
    """open(O_CREAT) asks path_mknod before it looks; the kernel drops the answer if the file
    is there. The event of such a refusal is about nothing."""
    namespace = the_namespace(guest)
    path = f"{userns.FOREIGN}/exists"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    os.chmod(path, 0o666)

    def act() -> int:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def as_deep_as_the_kernel_goes(guest: Guest) -> None:
    """The managed namespace is one below the initial one; 32 more are the kernel's limit."""
    namespace = the_namespace(guest)

    def deeper() -> int:
        return userns.call("unshare", userns.NEWUSER)

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "deep0", nested=32), ALLOWED)
        put(guest, policy, userns.ALLOWED_DIR)
        events(policy)
        for nested in (31, 32):
            refusal = namespace.attempt(create, userns.FOREIGN, "deep1", nested=nested)
            guest.expect(refusal, refused())
            reported(guest, policy, "mknod", "mount")
        guest.expect(namespace.attempt(create, userns.ALLOWED_DIR, "deep2", nested=32), ALLOWED)
        guest.expect(namespace.attempt(deeper, nested=31), ALLOWED)
        guest.expect(namespace.attempt(deeper, nested=32), refused(errno.ENOSPC))
        policy.reset_by_inode(namespace.inode)


# ── what is not stopped ──


@namespaces.case()
def limit_memory_files(guest: Guest) -> None:
    """memfd, pipes and sockets have an inode of the namespace's, and end with their last fd."""
    namespace = the_namespace(guest)

    def act() -> int:
        memory = os.memfd_create("m")
        assert os.fstat(memory).st_uid == 0
        sock = _socket.socket()
        for fd in (memory, *os.pipe(), sock.fileno()):
            os.fchown(fd, 5, 5)
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def limit_terminals(guest: Guest) -> None:
    """The other end of a terminal is an inode in the host's devpts, until its master is closed."""
    namespace = the_namespace(guest)
    guest.mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666,newinstance")
    _show(guest, "/dev/pts")
    receiver, sender = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM, 0)

    def act() -> int:
        fd = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        number = bytearray(4)
        userns.call("ioctl", fd, 0x80045430, number)  # TIOCGPTN
        name = f"/dev/pts/{struct.unpack('=I', number)[0]}"
        sender.send(f"{name} {os.stat(name).st_uid}".encode())
        return 0

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        name, owner = receiver.recv(100).decode().split()
        assert owner == "0", "as the namespace sees it"
        assert not os.path.exists(name), "it ended with the process"
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def limit_keys(guest: Guest) -> None:
    """A key in a keyring that was inherited from outside stays as long as that keyring."""
    from pybpf.sys.syscalls import keyctl

    namespace = the_namespace(guest)
    keyctl(1, 0, 0, 0, 0)  # KEYCTL_JOIN_SESSION_KEYRING: one of this process'
    keyctl(5, -3 & 0xFFFFFFFF, 0x3F3F3F3F, 0, 0)  # KEYCTL_SETPERM for everybody
    before = _keys()

    def act() -> int:
        return userns.call("add_key", "user", "left behind", b"x", 1, -3 & 0xFFFFFFFF)

    with installed() as policy:
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        guest.note(f"keys: {before} before, {_keys()} after")
        assert _keys() > before
        policy.reset_by_inode(namespace.inode)


def _keys() -> int:
    with open("/proc/keys") as file:
        return sum("left behind" in line for line in file)


@namespaces.case()
def limit_acl_on_a_listed_mount(guest: Guest) -> None:
    """Stricter than need be: the hook of an ACL knows no mount, so the list does not help."""
    namespace = the_namespace(guest)
    act = ACTS["acl_user"].function
    with installed() as policy:
        put(guest, policy, userns.ALLOWED_DIR)
        events(policy)
        guest.expect(namespace.attempt(act, userns.ALLOWED_DIR, "acl_user6"), refused())
        reported(guest, policy, "acl", "ids")
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def limit_what_was_there(guest: Guest) -> None:
    """A file that a namespace's member made before it was managed stays, and may be written."""
    namespace = the_namespace(guest)

    def act() -> int:
        with open(f"{userns.FOREIGN}/before", "w") as file:
            file.write("still mine")
        os.chmod(f"{userns.FOREIGN}/before", 0o4777)
        return 0

    with installed() as policy:
        policy.reset_by_inode(namespace.inode)
        guest.expect(namespace.attempt(create, userns.FOREIGN, "before"), ALLOWED)
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        assert os.stat(f"{userns.FOREIGN}/before").st_uid == userns.FIRST
        policy.reset_by_inode(namespace.inode)


@namespaces.case()
def limit_processes_outside(guest: Guest) -> None:
    """Whoever has the ids without being a member is not judged: it takes privilege outside."""
    namespace = the_namespace(guest)
    with installed() as policy:
        put(guest, policy)
        events(policy)
        path = f"{userns.FOREIGN}/from_outside"
        create(userns.FOREIGN, "from_outside")
        os.chown(path, userns.FIRST, userns.FIRST)
        assert os.stat(path).st_uid == userns.FIRST
        assert not events(policy)
        policy.reset_by_inode(namespace.inode)


