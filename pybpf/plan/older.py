# SPDX-License-Identifier: BSD-2-Clause
"""What an older kernel may be given instead: imported after it has refused a map or a program.

Nothing is asked of the kernel beforehand. After a refusal each difference that could explain it
is probed by itself, and only if the kernel indeed lacks it the call is made again without; what
was left out is told in the notes.

    lacking                     since  instead
    key and value types of maps 4.18…  a map without them (types that take none: ENOTSUPP)
    BPF_F_MMAPABLE              5.5    data maps that are read and written by system calls
    names                       4.15   none
    expected attach type        4.17   none, for the sections where it may be left out
    bpf_probe_read_kernel, _user and their _str forms
                                5.5    bpf_probe_read, bpf_probe_read_str
    charging memory to cgroups  5.11   RLIMIT_MEMLOCK of this process is raised, as far as it may be
"""

from __future__ import annotations

import os
import struct
import sys

from pybpf.errors import KernelError, VerifierError
from pybpf.kernel import create, features
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pybpf.plan import ops

__all__ = ["create_map", "load_program"]

# MAP_CREATE with BTF: map type without BTF support (ENOTSUPP), kernel without BTF for it.
_BTF_ERRORS = frozenset((bpf.ENOTSUPP, bpf.EINVAL, bpf.E2BIG, 95))
# Helper since 5.5 → the one before (6ae08ae3dea2).
_PROBE_READ = {112: 4, 113: 4, 114: 45, 115: 45}
# (program type, attach type) of sections whose attach type may be left out ("o" in
# pybpf.elf.section_table, which is not at hand where a Plan runs).
OPTIONAL_ATTACH_TYPES = frozenset(
    (
        (abi.BPF_PROG_TYPE_XDP, abi.BPF_XDP),
        (abi.BPF_PROG_TYPE_SOCK_OPS, abi.BPF_CGROUP_SOCK_OPS),
        (abi.BPF_PROG_TYPE_SK_SKB, abi.BPF_SK_SKB_STREAM_PARSER),
        (abi.BPF_PROG_TYPE_SK_SKB, abi.BPF_SK_SKB_STREAM_VERDICT),
        (abi.BPF_PROG_TYPE_SK_SKB, abi.BPF_SK_SKB_VERDICT),
        (abi.BPF_PROG_TYPE_SK_MSG, abi.BPF_SK_MSG_VERDICT),
        (abi.BPF_PROG_TYPE_LIRC_MODE2, abi.BPF_LIRC_MODE2),
        (abi.BPF_PROG_TYPE_FLOW_DISSECTOR, abi.BPF_FLOW_DISSECTOR),
        (abi.BPF_PROG_TYPE_CGROUP_SKB, abi.BPF_CGROUP_INET_INGRESS),
        (abi.BPF_PROG_TYPE_CGROUP_SKB, abi.BPF_CGROUP_INET_EGRESS),
        (abi.BPF_PROG_TYPE_CGROUP_SOCK, abi.BPF_CGROUP_INET_SOCK_CREATE),
        (abi.BPF_PROG_TYPE_CGROUP_DEVICE, abi.BPF_CGROUP_DEVICE),
    )
)


def create_map(
    op: ops.MapCreate, entries: int, attributes: dict[str, Any], first: KernelError,
    notes: list[str],
) -> int:  # fmt: skip
    """Create the map of ``op`` once more, the way this kernel knows; ``first`` is its refusal.

    attributes: those of ``create.map_fd`` beside the sizes, name and flags among them.
    Raises ``first`` where no other way does.
    """
    attributes = dict(attributes)
    error = first

    def ways() -> Iterator[str]:
        """Change ``attributes`` step by step; gives what each step leaves out."""
        if _raise_memlock(error, notes):
            yield "after that"
        if attributes.get("btf_fd") and "key_type_id" in attributes and error.errno in _BTF_ERRORS:
            for field in ("btf_fd", "key_type_id", "value_type_id"):
                attributes.pop(field)
            yield f"without BTF: {first.message}"
        # A flag that the object's own C asks for is not left out: somebody counts on it.
        if (
            error.errno == bpf.EINVAL
            and attributes["flags"] & abi.BPF_F_MMAPABLE
            and "." in op.name
            and _lacks("mmapable_array")
        ):
            attributes["flags"] &= ~abi.BPF_F_MMAPABLE
            yield f"without BPF_F_MMAPABLE ({features.requires('mmapable_array')})"
        if (
            error.errno in (bpf.EINVAL, bpf.E2BIG)
            and attributes.get("name")
            and _lacks("object_names")
        ):
            attributes["name"] = ""
            yield f"without its name ({features.requires('object_names')})"

    for way in ways():
        try:
            fd = create.map_fd(op.type, op.key_size, op.value_size, entries, **attributes)
        except KernelError as again:
            error = again
            continue
        notes.append(f"map {op.name} was made {way}")
        return fd
    raise first


def load_program(
    op: ops.ProgLoad, fields: dict[str, int | bytes], code: bytes | bytearray,
    first: KernelError, log_level: int, log: list[str], notes: list[str],
) -> int:  # fmt: skip
    """Load the program of ``op`` once more, the way this kernel knows; ``first`` is its refusal.

    Raises the last refusal, which tells most: behind a field that the kernel does not know waits
    the verifier's verdict.
    """
    fields = dict(fields)
    error = first
    left_out: list[str] = []

    def ways() -> Iterator[Pointer | None]:
        """Change ``fields`` step by step; gives what the new ones point to."""
        if _raise_memlock(error, notes):
            yield None
        if fields["prog_name"] and _too_new(error) and _lacks("object_names"):
            fields["prog_name"] = b""
            left_out.append("object_names")
            yield None
        if (
            fields["expected_attach_type"]
            and (op.type, fields["expected_attach_type"]) in OPTIONAL_ATTACH_TYPES
            and _too_new(error)
            and _lacks("expected_attach_type")
        ):
            fields["expected_attach_type"] = 0
            left_out.append("expected_attach_type")
            yield None
        if _unknown_probe_read(error) and _lacks("probe_read_kernel"):
            held = Pointer(_without_probe_read(code))
            fields["insns"] = held.address
            left_out.append("probe_read_kernel")
            yield held

    for _held in ways():
        try:
            fd = create.program_fd(fields, log_level=log_level, log_out=log)
        except KernelError as again:
            error = again
            continue
        notes += [
            f"program {op.name} was loaded without {features.requires(name)}" for name in left_out
        ]
        return fd
    raise error


def _lacks(feature: str) -> bool:
    """Whether a probe has shown that the kernel does not have it."""
    return features.probe(feature) is False


def _too_new(error: KernelError) -> bool:
    """A field that the kernel does not have: E2BIG, or EINVAL from before its verifier."""
    return error.errno == bpf.E2BIG or (
        error.errno == bpf.EINVAL and not isinstance(error, VerifierError)
    )


def _unknown_probe_read(error: KernelError) -> bool:
    return isinstance(error, VerifierError) and any(
        f"#{number}" in error.log for number in _PROBE_READ
    )


def _without_probe_read(code: bytes | bytearray) -> bytes:
    out = bytearray(code)
    for at in range(0, len(out), 8):
        # A call (0x85) whose source register is 0 calls a helper.
        source = out[at + 1] >> 4 if sys.byteorder == "little" else out[at + 1] & 15
        if out[at] == 0x85 and source == 0:
            number = struct.unpack_from("=i", out, at + 4)[0]
            struct.pack_into("=i", out, at + 4, _PROBE_READ.get(number, number))
    return bytes(out)


def _raise_memlock(error: KernelError, notes: list[str]) -> bool:
    """Raise RLIMIT_MEMLOCK where its being reached may be what EPERM means; whether it was."""
    if error.errno != bpf.EPERM:
        return False
    from pybpf.sys import diagnose

    if diagnose.memlock() is None or diagnose.memcg_accounting():
        return False
    try:
        import resource

        what = resource.RLIMIT_MEMLOCK
        soft, hard = resource.getrlimit(what)
        try:
            resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):  # without CAP_SYS_RESOURCE
            if soft == hard:
                return False
            resource.setrlimit(what, (hard, hard))
    except (ImportError, OSError, ValueError):
        return False
    notes.append(f"RLIMIT_MEMLOCK was raised: Linux {os.uname().release} charges BPF memory to it")
    return True
