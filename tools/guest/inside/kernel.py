# SPDX-License-Identifier: BSD-2-Clause
"""What the guest's PID 1 needs beside restrict: its usual mounts, its disks, its end."""

from __future__ import annotations

import os

from pybpf.sys.syscalls import syscall
from restrict.mounts import mount

__all__ = ["disks", "mount_usual", "reboot"]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8


def mount_usual() -> None:
    """proc, sys, dev, run and the filesystems below /sys that BPF work needs."""
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
        os.makedirs(target, exist_ok=True)
        mount(source, target, kind, flags)


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


def reboot() -> None:
    """Leave the guest: qemu runs with -no-reboot and ends."""
    syscall("reboot", 0xFEE1DEAD, 672274793, 0x01234567, 0)
