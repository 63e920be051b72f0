# SPDX-License-Identifier: BSD-2-Clause
"""Why a bpf(2) call may have been refused, told only from what can be read on this machine.

Imported after a failure. Nothing here guesses: every sentence states a fact just probed.
"""

from __future__ import annotations

from pybpf.sys import abi

__all__ = ["capabilities", "lockdown", "memcg_accounting", "memlock", "permission_hint"]

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 12, 21, 38, 39

# Commands that any of CAP_BPF or CAP_SYS_ADMIN opens; others need CAP_SYS_ADMIN.
_ADMIN_ONLY = frozenset(
    (
        abi.BPF_PROG_GET_FD_BY_ID, abi.BPF_MAP_GET_FD_BY_ID, abi.BPF_LINK_GET_FD_BY_ID,
        abi.BPF_PROG_GET_NEXT_ID, abi.BPF_MAP_GET_NEXT_ID, abi.BPF_BTF_GET_NEXT_ID,
        abi.BPF_LINK_GET_NEXT_ID, abi.BPF_ENABLE_STATS, abi.BPF_TASK_FD_QUERY,
    )
)  # fmt: skip
_CAP_PROGRAMS = frozenset((abi.BPF_PROG_LOAD, abi.BPF_MAP_CREATE, abi.BPF_BTF_LOAD))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def capabilities() -> int | None:
    """The effective capabilities of this thread as a bit mask; None if they cannot be read."""
    for line in (_read("/proc/thread-self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return None


def lockdown() -> str | None:
    """The kernel's lockdown mode: "none", "integrity", "confidentiality"; None: not to be seen."""
    text = _read("/sys/kernel/security/lockdown") or ""
    if "[" in text and "]" in text:
        return text[text.index("[") + 1 : text.index("]")]
    return None


def user_namespace_is_initial() -> bool | None:
    """Whether the process is in the initial user namespace (inode of PROC_USER_INIT_INO)."""
    import os

    try:
        return os.stat("/proc/self/ns/user").st_ino == 0xEFFFFFFD
    except OSError:
        return None


def permission_hint(cmd: int) -> str | None:
    """One sentence on an EPERM of bpf command ``cmd``, or None if nothing found explains it."""
    caps = capabilities()
    if caps is None:
        return None
    admin = caps >> CAP_SYS_ADMIN & 1
    if cmd in _ADMIN_ONLY and not admin:
        return "The process lacks CAP_SYS_ADMIN; run it as root or grant that capability."
    if not admin and not caps >> CAP_BPF & 1:
        setting = (_read("/proc/sys/kernel/unprivileged_bpf_disabled") or "").strip()
        state = f" and kernel.unprivileged_bpf_disabled is {setting}" if setting else ""
        return (
            f"The process lacks CAP_BPF and CAP_SYS_ADMIN{state}; run it as root or grant CAP_BPF "
            "(tracing and LSM programs also need CAP_PERFMON)."
        )
    if cmd == abi.BPF_PROG_LOAD and not admin:
        missing = [
            name
            for name, bit in (("CAP_PERFMON", CAP_PERFMON), ("CAP_NET_ADMIN", CAP_NET_ADMIN))
            if not caps >> bit & 1
        ]
        if missing:
            return f"The process has CAP_BPF but lacks {' and '.join(missing)}."
    if user_namespace_is_initial() is False:
        return (
            "The process is in a user namespace of its own, where capabilities do not open bpf(2) "
            "without a BPF token; run it in the initial user namespace."
        )
    mode = lockdown()
    if cmd == abi.BPF_PROG_LOAD and mode == "confidentiality":
        return (
            "The kernel is locked down (confidentiality): programs that use bpf_probe_read* "
            "helpers are refused."
        )
    if cmd in _CAP_PROGRAMS and (limit := memlock()) is not None and not memcg_accounting():
        return (
            f"RLIMIT_MEMLOCK is {limit} bytes and this kernel charges BPF memory to it "
            "(before 5.11); raise it."
        )
    if cmd == abi.BPF_PROG_LOAD:
        lsms = _read("/sys/kernel/security/lsm")
        tail = f"; active security modules: {lsms.strip()}" if lsms else ""
        return f"The process has all capabilities that BPF_PROG_LOAD asks for{tail}."
    return None


def memlock() -> int | None:
    """The soft RLIMIT_MEMLOCK in bytes; None: unlimited or unknown."""
    for line in (_read("/proc/self/limits") or "").splitlines():
        if line.startswith("Max locked memory"):
            word = line.split()[3]
            return int(word) if word.isdigit() else None
    return None


def memcg_accounting() -> bool:
    """Whether BPF memory is charged to cgroups, not to RLIMIT_MEMLOCK: helper
    bpf_ktime_get_coarse_ns came with it (5.11); the release is read, as libbpf's probe is a load
    that has just failed."""
    import os

    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    return (major, minor) >= (5, 11)
