# SPDX-License-Identifier: BSD-2-Clause
"""Programs → the operations that attach them.

Only programs whose section says everything that attaching needs are attached by a Plan; a
program for a network interface or a cgroup is attached by whoever knows which one.
"""

from __future__ import annotations

from pybpf.plan import ops
from pybpf.spec import ProgramSpec
from pybpf.sys import abi

__all__ = ["link_operation"]

# Iterators over one map's elements need to be told which map.
_ITER_NEEDS_MAP = ("bpf_map_elem", "bpf_sk_storage_map")
_TRACING = (
    abi.BPF_TRACE_RAW_TP,
    abi.BPF_TRACE_FENTRY,
    abi.BPF_TRACE_FEXIT,
    abi.BPF_MODIFY_RETURN,
    abi.BPF_TRACE_FSESSION,
)


def link_operation(program: ProgramSpec, slot: int, dst: int) -> ops.LinkCreate | None:
    """The operation that attaches ``program``, or None if it cannot attach by itself."""
    if not program.autoattach:
        return None
    target = program.attach_to
    kind = program.section.split("/", 1)[0]

    def link(how: str, attach_type: int = 0, to: str | None = None) -> ops.LinkCreate:
        return ops.LinkCreate(
            dst=dst, name=program.name, prog=slot, how=how, attach_type=attach_type, target=to
        )

    ptype, attach_type = program.type, program.expected_attach_type
    if ptype == abi.BPF_PROG_TYPE_LSM and attach_type == abi.BPF_LSM_MAC and target:
        return link("link", attach_type)
    if ptype == abi.BPF_PROG_TYPE_TRACING and target:
        if attach_type == abi.BPF_TRACE_ITER:
            return None if target in _ITER_NEEDS_MAP else link("link", attach_type)
        if attach_type in _TRACING:
            return link("link", attach_type)
    if (
        ptype in (abi.BPF_PROG_TYPE_RAW_TRACEPOINT, abi.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE)
        and target
    ):
        return link("raw_tracepoint", to=target)
    if ptype == abi.BPF_PROG_TYPE_TRACEPOINT and target and target.count("/") == 1:
        return link("tracepoint", to=target)
    if ptype == abi.BPF_PROG_TYPE_KPROBE and target and kind in _PROBES:
        return link(kind, to=target)
    return None


_PROBES = ("kprobe", "kretprobe", "ksyscall", "kretsyscall")
