# SPDX-License-Identifier: BSD-2-Clause
"""System calls of the guest's PID 1: mounts, modules, keys, power."""

from __future__ import annotations

import ctypes
import os

__all__ = [
    "add_key",
    "disks",
    "find_keyring",
    "insmod",
    "keyctl",
    "mount",
    "mount_usual",
    "reboot",
    "switch_root",
    "syscall",
    "umount",
]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_SYS = {
    "x86_64": {
        "mount": 165, "umount2": 166, "reboot": 169, "add_key": 248, "keyctl": 250,
        "finit_module": 313,
    },
    "aarch64": {
        "mount": 40, "umount2": 39, "reboot": 142, "add_key": 217, "keyctl": 219,
        "finit_module": 273,
    },
}[os.uname().machine]  # fmt: skip

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_MOVE = 8192


def syscall(what: str, name: str, *arguments: object) -> int:
    """The system call *name*; *what* says what it was for, in the error's message.

    Raises:
        OSError: the call failed.
    """
    words = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result = int(_libc.syscall(ctypes.c_long(_SYS[name]), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2); *target* is made if it is not there."""
    if not os.path.isdir(target):
        os.makedirs(target)
    syscall(
        f"mount {kind or source} on {target}", "mount",
        source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None,
    )  # fmt: skip


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    syscall(f"umount {target}", "umount2", target.encode(), flags)


def mount_usual() -> None:
    """proc, sys, dev, run, tmp and the filesystems below /sys that BPF work needs."""
    for source, target, kind, flags in (
        ("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
        ("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC),
        ("devtmpfs", "/dev", "devtmpfs", MS_NOSUID),
        ("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV),
        ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC),
        ("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV),
        ("securityfs", "/sys/kernel/security", "securityfs", 0),
        ("bpf", "/sys/fs/bpf", "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", 0),
        ("tracefs", "/sys/kernel/tracing", "tracefs", 0),
    ):
        mount(source, target, kind, flags)


def insmod(path: str, parameters: str = "") -> None:
    """finit_module(2) of an uncompressed module file; parameters as in ``a=1 b=2``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscall(f"insmod {path} {parameters}".rstrip(), "finit_module", fd, parameters.encode(), 0)
    finally:
        os.close(fd)


def add_key(kind: str, description: str, payload: bytes, keyring: int) -> int:
    """add_key(2); gives the key's serial number."""
    return syscall(
        f"add_key {kind} {description!r}", "add_key",
        kind.encode(), description.encode(), payload, len(payload), keyring,
    )  # fmt: skip


def keyctl(what: str, operation: int, *arguments: object) -> int:
    """keyctl(2)."""
    return syscall(what, "keyctl", operation, *arguments)


def find_keyring(name: str) -> int | None:
    """The serial number of the kernel's keyring *name* (``.dm-verity``), from /proc/keys."""
    with open("/proc/keys") as keys:
        for line in keys:
            fields = line.split(None, 8)
            if len(fields) == 9 and fields[7] == "keyring" and fields[8].startswith(f"{name}:"):
                return int(fields[0], 16)
    return None


def disks() -> dict[str, str]:
    """Serial number of each virtio disk to its device node."""
    found = {}
    for name in sorted(os.listdir("/sys/block")):
        try:
            with open(f"/sys/block/{name}/serial") as serial:
                found[serial.read().strip()] = f"/dev/{name}"
        except OSError:
            continue
    return found


def switch_root(new_root: str) -> None:
    """Make *new_root* the root; the mounts of /proc, /sys, /dev and /run move along."""
    for name in ("proc", "sys", "dev", "run"):
        mount(f"/{name}", f"{new_root}/{name}", "", MS_MOVE)
    os.chdir(new_root)
    mount(".", "/", "", MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def reboot() -> None:
    """Leave the guest: qemu runs with -no-reboot and ends."""
    syscall("reboot", "reboot", 0xFEE1DEAD, 672274793, 0x01234567, 0)
