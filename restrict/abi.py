# SPDX-License-Identifier: BSD-2-Clause
"""Names and layouts that the policies' programs and user space share.

The source of truth is bpf/include/{policy,fsaccess,userns,pins}.h; tests read these headers and
hold this file to them. Offsets of globals are not here: they come from the object's BTF through the
Plan.
"""

from __future__ import annotations

import os
import struct

__all__ = [
    "EVENT",
    "KEPT_BY",
    "MAGICS",
    "NEVER",
    "OPERATIONS",
    "PATH_NAME_ONLY",
    "PATH_TRUNCATED",
    "PINS_FILESYSTEM",
    "PINS_KINDS",
    "PINS_OPERATIONS",
    "PINS_REASONS",
    "POLICIES",
    "REASONS",
    "USERNS_OPERATIONS",
    "USERNS_REASONS",
    "VERDICTS",
    "kernel_dev",
    "st_dev",
]

OPERATIONS = (
    "exec", "exec_check", "mmap", "mprotect", "ptrace", "bpf_map", "bpf_program", "bpf_link",
    "brk", "verity", "device_mapper", "sysctl", "signal",
)  # fmt: skip
VERDICTS = ("allowed", "denied", "audited")
REASONS = (
    "none", "write_exec", "anonymous", "not_regular", "filesystem", "overlay", "no_device",
    "untrusted_device", "unsigned_device", "modified", "ptrace_owner", "ptrace", "guard_map",
    "guard_program", "guard_link", "implied_exec", "table_changed", "not_owner", "switches_off",
    "exec_stack", "signal_owner",
)  # fmt: skip

USERNS_OPERATIONS = (
    "chown", "mkdir", "mknod", "symlink", "link", "whiteout", "tmpfile", "mqueue", "overlay",
    "setgroups", "bpf_map", "bpf_program", "bpf_link", "ptrace", "acl", "capability", "ipc",
    "subvolume",
)  # fmt: skip
USERNS_REASONS = (
    "none", "mount", "too_deep", "upper", "overlay", "setgroups", "guard_map", "guard_program",
    "guard_link", "ptrace_owner", "ids", "ipc",
)  # fmt: skip
PINS_OPERATIONS = (
    "unlink", "rmdir", "rename", "create", "attributes", "open", "umount", "mount", "move",
    "pivot", "remount", "bpf_map", "bpf_program", "bpf_link", "link_change", "ptrace", "sysctl",
    "gone",
)  # fmt: skip
PINS_REASONS = (
    "none", "guarded", "mount", "ancestor", "propagation", "covers", "mount_point", "unknown",
    "too_many", "race", "guard_map", "guard_program", "guard_link", "ptrace_owner", "switches_off",
    "gone",
)  # fmt: skip
PINS_KINDS = ("map", "program", "link")  # enum pins_kind, from 1
# enum policy_keep: what keeps a policy attached, by its number in the globals and the status.
KEPT_BY = ("process", "exec", "pins", "ownerless", "keeper")
# struct pins_filesystem: superblock namespace magic device reserved.
PINS_FILESYSTEM = struct.Struct("=3Q 2I")
# enum policy_number → name, operations, reasons.
POLICIES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("fsaccess", OPERATIONS, REASONS),
    ("userns", USERNS_OPERATIONS, USERNS_REASONS),
    ("pins", PINS_OPERATIONS, PINS_REASONS),
)

PATH_NAME_ONLY, PATH_TRUNCATED = 1, 2

# struct policy_event: time operation reason verdict pid tid uid cgroup inode
# magic device prot flags object path_flags path_length comm path policy.
EVENT = struct.Struct("=Q 6I 3Q 2I Q 3I 16s 256s I")

# include/uapi/linux/magic.h. Filesystems whose files' data is their one block device's.
MAGICS = {
    "erofs": 0xE0F5E1E2,
    "squashfs": 0x73717368,
    "ext4": 0xEF53,
    "xfs": 0x58465342,
}
# Data that is not the device's, or devices of several numbers: refused even if asked for.
NEVER = {"fuse": 0x65735546, "btrfs": 0x9123683E}


def kernel_dev(st_dev: int) -> int:
    """User space's device number (stat) → the kernel's dev_t (major << 20 | minor)."""
    return os.major(st_dev) << 20 | os.minor(st_dev)


def st_dev(dev: int) -> int:
    """The kernel's dev_t → user space's."""
    return os.makedev(dev >> 20, dev & 0xFFFFF)
