# SPDX-License-Identifier: BSD-2-Clause
"""Programs → the operations that attach them.

Only programs whose section says everything that attaching needs are attached by a Plan; a
program for a network interface or a cgroup is attached by whoever knows which one, with
``Object.attach_program``.
"""

from __future__ import annotations

from pybpf.plan import ops
from pybpf.plan.attach import how_of
from pybpf.spec import ProgramSpec

__all__ = ["link_operation"]

# Iterators over one map's elements need to be told which map.
_ITER_NEEDS_MAP = ("bpf_map_elem", "bpf_sk_storage_map")
# What is attached to a target that was given when the program was loaded.
_LOADED_FOR = ("link", "iter")
# What takes the section's target when it is attached.
_BY_TARGET = ("raw_tracepoint", "tracepoint")
_PROBES = ("kprobe", "kretprobe", "ksyscall", "kretsyscall", "kprobe_multi", "kretprobe_multi",
           "kprobe_session", "tracing_multi")  # fmt: skip
_USER_PROBES = ("uprobe", "uretprobe", "uprobe_multi", "uretprobe_multi", "uprobe_session")


def link_operation(program: ProgramSpec, slot: int, dst: int) -> ops.LinkCreate | None:
    """The operation that attaches ``program``, or None if it cannot attach by itself."""
    target = program.attach_to
    if not program.autoattach or not target:
        return None
    attach_type = program.expected_attach_type
    how = how_of(program.type, attach_type, program.section)
    to: str | None = target
    if how in _LOADED_FOR:
        if how == "iter" and target in _ITER_NEEDS_MAP:
            return None
        # An iterator over no map in particular is attached as every tracing program is.
        how, to = "link", None
    elif how in _USER_PROBES:
        if ":" not in target:
            return None
    elif how == "tracepoint":
        if target.count("/") != 1:
            return None
    elif how not in _BY_TARGET and how not in _PROBES:
        return None
    if how in ("raw_tracepoint", "tracepoint", "kprobe", "kretprobe", "ksyscall", "kretsyscall"):
        attach_type = 0
    return ops.LinkCreate(
        dst=dst, name=program.name, prog=slot, how=how, attach_type=attach_type, target=to
    )
