# SPDX-License-Identifier: BSD-2-Clause
"""The Plan of the ownerless policy (bpf/fsaccess_cgroup.bpf.c). Where images are built only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restrict import bundle

if TYPE_CHECKING:
    from pybpf.plan.ops import Plan

__all__ = ["OBJECT", "build"]

OBJECT = bundle.OBJECT.with_name("fsaccess_cgroup.bpf.o")


def build(
    source: str | Path | bytes = OBJECT,
    *,
    filesystems: Sequence[str] = ("erofs", "squashfs"),
    policy_version: int | None = None,
) -> Plan:
    """Relocated by the kernel that runs it; restrict attaches every program itself.

    policy_version: what the status says (default: the object's own).
    """
    from pybpf.compiler import compile as compile_plan

    found = bundle.spec(source, filesystems=filesystems, policy_version=policy_version)
    for name in found.programs:
        found = found.with_program(name, autoattach=False)
    return compile_plan(found, relocate="kernel")
