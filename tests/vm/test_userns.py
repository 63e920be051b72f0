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
from tests.vm.outcome import ALLOWED, refused, trial
from tests.vm.probes import attempt
from tests.vm.scenario import Guest, Scenario
from tests.vm.userns_acts import ACTS, create, queue
from tests.vm.userns_filesystems import add_to, drives, show
from tests.vm.userns_policy import (
    ENFORCING,
    EXPEDITED,
    PLANS,
    add,
    events,
    managed,
    plan_without,
    plans,
    prepare,
    put,
    refused_once_managed,
    reported,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

namespaces = Scenario("userns", memory=1024, append=EXPEDITED, drives=drives())
namespaces.setup(prepare)
add(namespaces)
add_to(namespaces)

# No helper that reads memory by address works then; the policy must not need one.
lockdown = Scenario("userns_lockdown", append=f"lockdown=confidentiality {EXPEDITED}")
lockdown.setup(prepare)
add(lockdown)

toothless = Scenario(
    "userns_toothless", append=EXPEDITED,
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


# ── what is no file ──


@namespaces.case()
def message_queue(guest: Guest) -> None:
    with managed(guest) as (policy, namespace):
        refused_once_managed(guest, policy, "mqueue", "queue", queue, "")

        def apart(name: str) -> int:
            userns.call("unshare", userns.NEWIPC)
            return queue("", name)

        guest.expect(namespace.attempt(apart, "queue2"), ALLOWED)


@namespaces.case()
def system_v_objects(guest: Guest) -> None:
    """Of the initial IPC namespace they would stay; of the namespace's own they may be made."""
    acts: dict[str, Callable[[], int]] = {
        "shmget": lambda: userns.call("shmget", 0, 4096, 0o1600),
        "msgget": lambda: userns.call("msgget", 0, 0o1600),
        "semget": lambda: userns.call("semget", 0, 1, 0o1600),
    }
    with managed(guest) as (policy, namespace):
        for name, act in acts.items():

            def apart(act: Callable[[], int] = act) -> int:
                userns.call("unshare", userns.NEWIPC)
                return act()

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


@namespaces.case()
def set_groups(guest: Guest) -> None:

    def act() -> int:
        os.setgroups([5])
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        events(policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        put(guest, policy, deny_setgroups=True)
        guest.expect(namespace.attempt(act), refused())
        reported(guest, policy, "setgroups", "setgroups")
        assert [e.deny_setgroups for e in policy.namespaces()] == [True]
        put(guest, policy, deny_setgroups=False)
        guest.expect(namespace.attempt(act), ALLOWED)


# ── ways round ──


@namespaces.case()
def another_mount_namespace_has_other_mounts(guest: Guest) -> None:
    """A member that copies its mount namespace has copies of the mounts, which are not listed."""

    def act(name: str) -> int:
        userns.call("unshare", userns.NEWNS)
        return create(userns.ALLOWED_DIR, name)

    with managed(guest) as (policy, _):
        refused_once_managed(guest, policy, "mknod", "copied", act, listed=(userns.ALLOWED_DIR,))


@namespaces.case()
def folder_from_outside(guest: Guest) -> None:
    """An fd of the host's own mount of a listed filesystem: that mount is not the listed one."""
    for path in (userns.FOREIGN, userns.ALLOWED_DIR):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        name = os.path.basename(path)

        def act(name: str, fd: int = fd) -> int:
            os.mkdir(name, dir_fd=fd)
            return 0

        with managed(guest) as (policy, _):
            refused_once_managed(
                guest, policy, "mkdir", f"by_fd{name}", act, listed=(userns.ALLOWED_DIR,)
            )
        os.close(fd)


@namespaces.case()
def filesystem_of_a_namespace_below(guest: Guest) -> None:

    def act() -> int:
        userns.call("unshare", userns.NEWNS)
        userns.call("mount", "tmpfs", "/mnt", "tmpfs", 0, "mode=0777")
        return create("/mnt", "below")

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act, nested=3), ALLOWED)


@namespaces.case()
def filesystem_of_another_namespace(guest: Guest) -> None:
    """Two delegated namespaces: neither creates on a filesystem that the other has mounted."""
    other = userns.Namespace()
    fd = other.path(userns.OWN)

    def act(name: str) -> int:
        os.mkdir(name, dir_fd=fd)
        return 0

    with managed(guest) as (policy, namespace):
        refused_once_managed(guest, policy, "mkdir", "other", act)
        policy.put_by_fd(other.user)
        guest.expect(other.attempt(create, userns.OWN, "other2"), ALLOWED)
        guest.expect(namespace.attempt(act, "other3"), refused())
        policy.reset_by_inode(namespace.inode)
        policy.reset_by_inode(other.inode)
    os.close(fd)
    other.end()


@namespaces.case()
def ids_without_membership(guest: Guest) -> None:
    """What counts is the namespace of the credentials in force, which decide the owner too."""

    def enter_and_come_back() -> int:
        # A process that has not entered is no member, whatever ids it has taken.
        os.setgroups([])
        os.setresgid(userns.FIRST, userns.FIRST, userns.FIRST)
        os.setresuid(userns.FIRST, userns.FIRST, userns.FIRST)
        return create(userns.FOREIGN, "borrowed")

    with managed(guest) as (policy, _):
        put(guest, policy)
        guest.expect(attempt(lambda act: act(enter_and_come_back)), ALLOWED)
    assert os.stat(f"{userns.FOREIGN}/borrowed").st_uid == userns.FIRST
    assert ALLOWED.matches(trial(os.unlink, f"{userns.FOREIGN}/borrowed"))


@namespaces.case()
def opening_by_handle(guest: Guest) -> None:
    """open_by_handle_at opens what there is, and for members not even that (control: root)."""

    def act() -> int:
        handle = bytearray(struct.pack("=Ii", 128, 0) + bytes(128))
        mount = bytearray(8)
        userns.call("name_to_handle_at", -100, f"{userns.FOREIGN}/.link7", handle, mount, 0)
        folder = os.open(userns.FOREIGN, os.O_RDONLY | os.O_DIRECTORY)
        return userns.call("open_by_handle_at", folder, handle, os.O_RDWR)

    with managed(guest) as (policy, namespace):
        os.close(act())
        guest.expect(namespace.attempt(act), refused())
        put(guest, policy)
        guest.expect(namespace.attempt(act), refused())
        assert not events(policy), "the kernel itself refuses"


@namespaces.case()
def moving_is_allowed(guest: Guest) -> None:
    """rename and exchange leave each inode to its owner, and make none."""

    def act() -> int:
        first, second = f"{userns.FOREIGN}/.link7", f"{userns.FOREIGN}/.whiteout7"
        userns.call("renameat2", -100, first, -100, second, 2)  # RENAME_EXCHANGE
        os.rename(first, f"{first}.moved")
        os.rename(f"{first}.moved", first)
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)


@namespaces.case()
def across_mounts(guest: Guest) -> None:
    """Nothing comes from its own filesystem to a foreign one: the kernel refuses (EXDEV)."""

    def act(call: object) -> int:
        create(userns.OWN, "across")
        try:
            call(f"{userns.OWN}/across", f"{userns.FOREIGN}/across")  # type: ignore[operator]
        finally:
            os.unlink(f"{userns.OWN}/across")
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        for call in (os.rename, os.link):
            guest.expect(namespace.attempt(act, call), refused(errno.EXDEV))


@namespaces.case()
def opening_what_exists_is_allowed(guest: Guest) -> None:
    """open(O_CREAT) asks path_mknod before it looks; the kernel drops the answer if the file
    is there. The event of such a refusal is about nothing."""
    path = f"{userns.FOREIGN}/exists"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    os.chmod(path, 0o666)

    def act() -> int:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)


@namespaces.case()
def as_deep_as_the_kernel_goes(guest: Guest) -> None:
    """The managed namespace is one below the initial one; 32 more are the kernel's limit."""

    def deeper() -> int:
        return userns.call("unshare", userns.NEWUSER)

    with managed(guest) as (policy, namespace):
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


# ── what is not stopped ──


@namespaces.case()
def limit_memory_files(guest: Guest) -> None:
    """memfd, pipes and sockets have an inode of the namespace's, and end with their last fd."""

    def act() -> int:
        memory = os.memfd_create("m")
        assert os.fstat(memory).st_uid == 0
        sock = _socket.socket()
        for fd in (memory, *os.pipe(), sock.fileno()):
            os.fchown(fd, 5, 5)
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)


@namespaces.case()
def limit_terminals(guest: Guest) -> None:
    """The other end of a terminal is an inode in the host's devpts, until its master is closed."""
    guest.mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666,newinstance")
    show(guest, "/dev/pts")
    receiver, sender = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM, 0)

    def act() -> int:
        fd = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        number = bytearray(4)
        userns.call("ioctl", fd, 0x80045430, number)  # TIOCGPTN
        name = f"/dev/pts/{struct.unpack('=I', number)[0]}"
        sender.send(f"{name} {os.stat(name).st_uid}".encode())
        return 0

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        name, owner = receiver.recv(100).decode().split()
        assert owner == "0", "as the namespace sees it"
        assert not os.path.exists(name), "it ended with the process"


@namespaces.case()
def limit_keys(guest: Guest) -> None:
    """A key in a keyring that was inherited from outside stays as long as that keyring."""
    from pybpf.sys.syscalls import keyctl

    keyctl(1, 0, 0, 0, 0)  # KEYCTL_JOIN_SESSION_KEYRING: one of this process'
    keyctl(5, -3 & 0xFFFFFFFF, 0x3F3F3F3F, 0, 0)  # KEYCTL_SETPERM for everybody
    before = _keys()

    def act() -> int:
        return userns.call("add_key", "user", "left behind", b"x", 1, -3 & 0xFFFFFFFF)

    with managed(guest) as (policy, namespace):
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        guest.note(f"keys: {before} before, {_keys()} after")
        assert _keys() > before


def _keys() -> int:
    with open("/proc/keys") as file:
        return sum("left behind" in line for line in file)


@namespaces.case()
def limit_acl_on_a_listed_mount(guest: Guest) -> None:
    """Stricter than need be: the hook of an ACL knows no mount, so the list does not help."""
    act = ACTS["acl_user"].function
    with managed(guest) as (policy, namespace):
        put(guest, policy, userns.ALLOWED_DIR)
        events(policy)
        guest.expect(namespace.attempt(act, userns.ALLOWED_DIR, "acl_user6"), refused())
        reported(guest, policy, "acl", "ids")


@namespaces.case()
def limit_what_was_there(guest: Guest) -> None:
    """A file that a namespace's member made before it was managed stays, and may be written."""

    def act() -> int:
        with open(f"{userns.FOREIGN}/before", "w") as file:
            file.write("still mine")
        os.chmod(f"{userns.FOREIGN}/before", 0o4777)
        return 0

    with managed(guest) as (policy, namespace):
        guest.expect(namespace.attempt(create, userns.FOREIGN, "before"), ALLOWED)
        put(guest, policy)
        guest.expect(namespace.attempt(act), ALLOWED)
        assert os.stat(f"{userns.FOREIGN}/before").st_uid == userns.FIRST


@namespaces.case()
def limit_processes_outside(guest: Guest) -> None:
    """Whoever has the ids without being a member is not judged: it takes privilege outside."""
    with managed(guest) as (policy, _):
        put(guest, policy)
        events(policy)
        path = f"{userns.FOREIGN}/from_outside"
        create(userns.FOREIGN, "from_outside")
        os.chown(path, userns.FIRST, userns.FIRST)
        assert os.stat(path).st_uid == userns.FIRST
        assert not events(policy)
