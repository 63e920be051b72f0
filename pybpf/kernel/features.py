# SPDX-License-Identifier: BSD-2-Clause
"""What the running kernel supports, found by trying it.

Each probe answers True, False or None (inconclusive: the kernel refused for a reason that says
nothing about the feature, such as missing privileges). True and False are remembered, None is
not. The first Linux version with a feature is in the tables, for messages of the kind
"map type ringbuf (requires >= v5.8)".
"""

from __future__ import annotations

import os
import struct
import sys

from pybpf.errors import KernelError, UsageError
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["map_type", "probe", "probes", "program_type", "requires", "requires_map_type"]

_PRIVILEGE = frozenset((bpf.EPERM, 13))  # EPERM, EACCES
_memory: dict[tuple[str, int | str], bool] = {}

# Map type → first release (commit messages of the kernel; bpftool and libbpf agree).
MAP_TYPE_SINCE = {
    1: "3.19", 2: "3.19", 3: "4.2", 4: "4.3", 5: "4.6", 6: "4.6", 7: "4.6", 8: "4.8", 9: "4.10",
    10: "4.10", 11: "4.11", 12: "4.12", 13: "4.12", 14: "4.14", 15: "4.14", 16: "4.15",
    17: "4.18", 18: "4.18", 19: "4.19", 20: "4.19", 21: "4.20", 22: "4.20", 23: "4.20",
    24: "5.2", 25: "5.4", 26: "5.6", 27: "5.8", 28: "5.10", 29: "5.11", 30: "5.16", 31: "6.1",
    32: "6.2", 33: "6.9", 34: "6.19",
}  # fmt: skip
PROGRAM_TYPE_SINCE = {
    1: "3.19", 2: "4.1", 3: "4.1", 4: "4.1", 5: "4.7", 6: "4.8", 7: "4.9", 8: "4.10", 9: "4.10",
    10: "4.10", 11: "4.10", 12: "4.10", 13: "4.13", 14: "4.14", 15: "4.15", 16: "4.17",
    17: "4.17", 18: "4.17", 19: "4.18", 20: "4.18", 21: "4.19", 22: "4.20", 23: "5.2", 24: "5.2",
    25: "5.3", 26: "5.5", 27: "5.6", 28: "5.6", 29: "5.7", 30: "5.9", 31: "5.14", 32: "6.4",
}  # fmt: skip


def _remember(kind: str, what: int | str, test: Callable[[], bool | None]) -> bool | None:
    if (kind, what) in _memory:
        return _memory[kind, what]
    answer = test()
    if answer is not None:
        _memory[kind, what] = answer
    return answer


def map_type(number: int) -> bool | None:
    """Whether maps of this type can be made."""
    return _remember("map", number, lambda: _try_map(number))


def _try_map(number: int) -> bool | None:
    key, value, entries = 4, 4, 1
    fields: dict[str, Any] = {}
    fds: list[int] = []
    if number in (abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF):
        key, value, entries = 0, 0, os.sysconf("SC_PAGESIZE")
    elif number in (abi.BPF_MAP_TYPE_QUEUE, abi.BPF_MAP_TYPE_STACK, abi.BPF_MAP_TYPE_BLOOM_FILTER):
        key = 0
    elif number == abi.BPF_MAP_TYPE_LPM_TRIE:
        key, value, fields = 8, 8, {"flags": abi.BPF_F_NO_PREALLOC}
    elif number == abi.BPF_MAP_TYPE_STACK_TRACE:
        value = 8
    elif number == abi.BPF_MAP_TYPE_INSN_ARRAY:
        value = 16  # struct bpf_insn_array_value
    elif number in (abi.BPF_MAP_TYPE_CGROUP_STORAGE, abi.BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE):
        key, value, entries = 16, 8, 0
    elif number == abi.BPF_MAP_TYPE_ARENA:
        key, value, fields = 0, 0, {"flags": abi.BPF_F_MMAPABLE}
    elif number == abi.BPF_MAP_TYPE_RHASH:
        fields = {"flags": abi.BPF_F_NO_PREALLOC}
    try:
        if number in (abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_HASH_OF_MAPS):
            fds.append(bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1))
            fields = {"inner_map_fd": fds[0]}
        fds.append(bpf.map_create(number, key, value, entries, **fields))
        return True
    except KernelError as error:
        if error.errno in _PRIVILEGE or error.errno in (12, 24, 23):  # ENOMEM, EMFILE, ENFILE
            return None
        # Types whose shape needs BTF or CAP_NET_ADMIN and the like: EINVAL tells unknown types
        # (find_and_alloc_map) but these refuse our simple shape in the same way.
        if number in (
            abi.BPF_MAP_TYPE_SK_STORAGE, abi.BPF_MAP_TYPE_INODE_STORAGE,
            abi.BPF_MAP_TYPE_TASK_STORAGE, abi.BPF_MAP_TYPE_CGRP_STORAGE,
            abi.BPF_MAP_TYPE_STRUCT_OPS,
        ):  # fmt: skip
            return None
        return False if error.errno == bpf.EINVAL else None
    finally:
        for fd in fds:
            os.close(fd)


def _return_zero() -> bytes:
    return struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


def load_probe(insns: bytes, **fields: int | bytes) -> KernelError | None:
    """Load a program of ``insns`` and close it again; None if the kernel takes it."""
    code, licence = Pointer(insns), Pointer(b"GPL\0")
    try:
        fd = bpf.prog_load(
            {
                "insns": code.address,
                "insn_cnt": len(insns) // 8,
                "license": licence.address,
                **fields,
            }
        )
    except KernelError as error:
        return error
    os.close(fd)
    return None


def program_type(number: int) -> bool | None:
    """Whether programs of this type can be loaded. Types whose programs need an attach target
    (tracing, LSM, extension, struct_ops) are told from an unknown type by the errno."""
    return _remember("program", number, lambda: _try_program(number))


def _try_program(number: int) -> bool | None:
    fields: dict[str, int | bytes] = {"prog_type": number}
    if number == abi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR:
        fields["expected_attach_type"] = abi.BPF_CGROUP_INET4_CONNECT
    elif number == abi.BPF_PROG_TYPE_CGROUP_SOCKOPT:
        fields["expected_attach_type"] = abi.BPF_CGROUP_GETSOCKOPT
    elif number == abi.BPF_PROG_TYPE_SK_LOOKUP:
        fields["expected_attach_type"] = abi.BPF_SK_LOOKUP
    elif number == abi.BPF_PROG_TYPE_SYSCALL:
        fields["prog_flags"] = abi.BPF_F_SLEEPABLE
    elif number == abi.BPF_PROG_TYPE_NETFILTER:
        fields["expected_attach_type"] = abi.BPF_NETFILTER
    needs_target = number in (
        abi.BPF_PROG_TYPE_TRACING, abi.BPF_PROG_TYPE_LSM, abi.BPF_PROG_TYPE_EXT,
        abi.BPF_PROG_TYPE_STRUCT_OPS,
    )  # fmt: skip
    if needs_target:
        log = bytearray(4096)
        code, licence = Pointer(_return_zero()), Pointer(b"GPL\0")
        fields |= {"insns": code.address, "insn_cnt": 2, "license": licence.address}
        try:
            os.close(bpf.prog_load({**fields, "log_level": 1}, log))
            return True
        except KernelError as error:
            if error.errno in _PRIVILEGE:
                return None
            # A known type gets as far as the verifier, which writes about the missing target.
            text = bytes(log).split(b"\0", 1)[0].strip()
            return True if text else (False if error.errno == bpf.EINVAL else None)
    failed = load_probe(_return_zero(), **fields)
    if failed is None:
        return True
    return False if failed.errno == bpf.EINVAL else None


def _btf_has(name: str, kind: int) -> bool | None:
    from pybpf.kernel import btf_lookup

    try:
        found = btf_lookup.resolve([(name, kind, None)])[0]
    except KernelError:
        return None
    if found is not None and found[0]:
        os.close(found[0])
    return found is not None


def _mmapable() -> bool | None:
    try:
        os.close(bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, flags=abi.BPF_F_MMAPABLE))
    except KernelError as error:
        return False if error.errno == bpf.EINVAL else None
    return True


def wide_offsets() -> bool | None:
    """Whether an instruction may hold any 32-bit offset into a map's value (kernel commit
    12a1fe6e12db; before, 1 << 29 was the end). Each refuses one past the value in its own words.
    """
    return _remember("feature", "wide_offsets", _try_wide_offset)


def _try_wide_offset() -> bool | None:
    try:
        fd = bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    except KernelError:
        return None
    source = abi.BPF_PSEUDO_MAP_VALUE << (4 if sys.byteorder == "little" else 0)
    load = struct.pack("=BBhiBBhi", 0x18, source, 0, fd, 0, 0, 0, 1 << 30)
    code, licence, log = Pointer(load + _return_zero()), Pointer(b"GPL\0"), bytearray(4096)
    fields: dict[str, int | bytes] = {
        "prog_type": abi.BPF_PROG_TYPE_SOCKET_FILTER, "insns": code.address, "insn_cnt": 4,
        "license": licence.address, "log_level": 1,
    }  # fmt: skip
    try:
        os.close(bpf.prog_load(fields, log))
    except KernelError:
        pass
    finally:
        os.close(fd)
    if b"direct value offset of" in log:
        return False
    return True if b"invalid access to map value pointer" in log else None


def _lsm_active() -> bool | None:
    try:
        with open("/sys/kernel/security/lsm", encoding="ascii") as file:
            return "bpf" in file.read().strip().split(",")
    except OSError:
        return None


def _common_attrs() -> bool | None:
    """The five-argument form: a map of an impossible type with a log. The kernel that knows the
    form writes "Invalid map_type.", the other one refuses the command's number."""
    log = bytearray(512)
    try:
        os.close(bpf.map_create(0x7FFFFFFF, 4, 4, 1, log=log))
    except KernelError as error:
        if error.errno in _PRIVILEGE:
            return None
        return bool(log.strip(b"\0"))
    return None


def _names() -> bool | None:
    try:
        os.close(bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="probe"))
    except KernelError as error:
        return False if error.errno in (bpf.EINVAL, bpf.E2BIG) else None
    return True


def _expected_attach_type() -> bool | None:
    failed = load_probe(
        _return_zero(),
        prog_type=abi.BPF_PROG_TYPE_CGROUP_SOCK,
        expected_attach_type=abi.BPF_CGROUP_INET4_POST_BIND,
    )
    if failed is None:
        return True
    # EINVAL comes from the verifier too (0 and 1 are what such a program may return): E2BIG
    # alone tells that the field is not there.
    return False if failed.errno == bpf.E2BIG else None


def _probe_read_kernel() -> bool | None:
    """A program that calls the helper on its own stack."""
    code = struct.pack(
        "=BBhiBBhiBBhiBBhi",
        0xBF, _registers(1, 10), 0, 0,  # r1 = r10
        0x07, 1, 0, -8,  # r1 += -8
        0xB7, 2, 0, 8,  # r2 = 8
        0xB7, 3, 0, 0,  # r3 = 0
    )  # fmt: skip
    code += struct.pack("=BBhi", 0x85, 0, 0, 113) + _return_zero()
    failed = load_probe(code, prog_type=abi.BPF_PROG_TYPE_TRACEPOINT)
    if failed is None:
        return True
    return False if failed.errno == bpf.EINVAL else None


def _registers(dst: int, src: int) -> int:
    return dst | src << 4 if sys.byteorder == "little" else dst << 4 | src


# name → (first release, test)
_PROBES: dict[str, tuple[str, Callable[[], bool | None]]] = {
    "object_names": ("4.15", _names),
    "expected_attach_type": ("4.17", _expected_attach_type),
    "btf": ("4.18", lambda: os.path.exists("/sys/kernel/btf/vmlinux")),
    "mmapable_array": ("5.5", _mmapable),
    "probe_read_kernel": ("5.5", _probe_read_kernel),
    "ringbuf": ("5.8", lambda: map_type(abi.BPF_MAP_TYPE_RINGBUF)),
    "syscall_program": ("5.14", lambda: program_type(abi.BPF_PROG_TYPE_SYSCALL)),
    "kernel_core_relocation": ("5.17", lambda: _btf_has("bpf_core_apply", abi.BTF_KIND_FUNC)),
    "bpf_lsm_active": ("5.7", _lsm_active),
    "bpf_real_data_inode": ("7.2", lambda: _btf_has("bpf_real_data_inode", abi.BTF_KIND_FUNC)),
    "common_attrs": ("7.0", _common_attrs),
}


def probe(name: str) -> bool | None:
    """Whether the kernel has feature ``name`` (one of ``probes()``)."""
    return _remember("feature", name, _known(name)[1])


def _known(name: str) -> tuple[str, Callable[[], bool | None]]:
    if name not in _PROBES:
        raise UsageError(f"there is no feature {name!r}; there are: {', '.join(_PROBES)}")
    return _PROBES[name]


def probes() -> tuple[str, ...]:
    """The names that ``probe`` takes."""
    return tuple(_PROBES)


def requires(name: str) -> str:
    """ "feature ringbuf (requires >= v5.8)". Raises UsageError for none of ``probes()``."""
    return f"feature {name} (requires >= v{_known(name)[0]})"


def requires_map_type(number: int) -> str:
    """A sentence: the kernel has no such map type, and since when there is one."""
    from pybpf.sys.abi_names import MAP_TYPE_NAMES

    name = MAP_TYPE_NAMES.get(number)
    if name is None:
        return f"There is no map type {number} in Linux up to 7.3."
    since = MAP_TYPE_SINCE.get(number)
    tail = f" (requires >= v{since})" if since else ""
    return f"This kernel, {os.uname().release}, has no map type {name}{tail}."
