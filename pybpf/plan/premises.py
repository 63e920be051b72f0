# SPDX-License-Identifier: BSD-2-Clause
"""What a Plan takes for given, asked before it goes on: its kernel, and maps that exist already.

Imported by the executor only for Plans that ask.
"""

from __future__ import annotations

import posix

from pybpf.errors import PlanError
from pybpf.kernel.map import Map
from pybpf.kernel.object import check_kind
from pybpf.plan import ops as _ops
from pybpf.sys import abi

__all__ = ["same_map", "this_kernel"]


def this_kernel(op: _ops.RequireKernel) -> None:
    """Raise PlanError unless the running kernel is the one that the Plan was decided for."""
    here = posix.uname()
    if (here.release, here.version) != (op.release, op.version):
        raise PlanError(
            f"this Plan was decided for Linux {op.release} ({op.version}), and this is Linux "
            f"{here.release} ({here.version}).",
            hint="Make it on this kernel, or with relocations left to the kernel.",
        )


def same_map(op: _ops.MapCreate, fd: int, entries: int, where: str) -> None:
    """Raise PlanError unless the map of ``fd``, found at ``where``, is what ``op`` would make.

    entries: max_entries as it would be made. The fd stays the caller's.
    """
    check_kind(fd, "map")
    # The Map object is a view for one question.
    view = Map(fd, op.name)
    try:
        flags = op.flags | (abi.BPF_F_NUMA_NODE if op.numa_node is not None else 0)
        differs = view.matches(op.type, op.key_size, op.value_size, entries, flags, op.extra)
    finally:
        view.fd = -1
    if differs:
        raise PlanError(
            f"the map at {where} is not the one that the object declares: {differs}.",
            map=op.name,
            hint="Remove the pin or load the object that made it.",
        )
