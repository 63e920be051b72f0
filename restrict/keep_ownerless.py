# SPDX-License-Identifier: BSD-2-Clause
"""fsaccess kept by nobody: BPF_LSM_CGROUP programs on the root of the cgroup2 hierarchy.

A program that BPF_PROG_ATTACH puts on a cgroup stays until it is detached or the cgroup goes, and
the root cgroup goes with the kernel. There is no fd, pin, unit or process to remove. Detaching or
replacing one of several programs needs an fd of it (kernel/bpf/cgroup.c, BPF_F_ALLOW_MULTI), and
the policy's guard refuses those: to everybody, for it has no owner. So it cannot be changed or
ended before the next boot.

The status iterator is pinned for `restrict status`; whoever unpins it blinds that command and
ends nothing.

Needs Linux 6.16, cgroup v2 (it need not be mounted), and the plan of bpf/fsaccess_cgroup.bpf.c.
"""

from __future__ import annotations

import errno
import os

from pybpf.errors import KernelError
from pybpf.plan.ops import ProgLoad
from pybpf.sys import abi
from pybpf.sys.bpf_more import prog_attach, prog_detach
from restrict import fsaccess, keep
from restrict.errors import RestrictError
from restrict.mounts import root_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.kernel.link import Link
    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan
    from restrict.fsaccess import Policy

__all__ = ["enable", "is_plan"]

_ALLOW_MULTI = 1 << 1  # BPF_F_ALLOW_MULTI


def is_plan(plan: Plan) -> bool:
    """Whether the plan is of programs for a cgroup."""
    return any(
        isinstance(op, ProgLoad) and op.expected_attach_type == abi.BPF_LSM_CGROUP
        for op in plan.ops
    )


def _attach(obj: Object, cgroup: int, done: list[tuple[int, int]]) -> dict[str, Link]:
    """Attach every program; done: (an fd of it for undoing that, attach type)."""
    for name, program in obj.programs.items():
        if name == fsaccess.STATUS:
            continue
        kind = abi.BPF_CGROUP_SYSCTL if name == fsaccess.SYSCTL else abi.BPF_LSM_CGROUP
        try:
            prog_attach(program.fileno(), cgroup, kind, _ALLOW_MULTI)
        except KernelError as e:
            if e.errno == errno.E2BIG:
                e.hint = (
                    "The kernel has ten places for hooks with cgroup programs; others use them."
                )
            raise e.at(program=name, cgroup="/") from None
        done.append((program.dup(), kind))
    return {}


def enable(
    plan: Plan,
    *,
    audit: bool = False,
    owner: int | None = None,
    initramfs_dev: int = 0,
    status_pin: str | None = fsaccess.PIN,
    before_arm: Callable[[Object], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Policy:
    """``fsaccess.enable`` with programs that stay on the root cgroup; the Policy has no links.

    Closing it ends nothing (but takes the status away: use ``release``). The owner may still
    change the policy's globals; ``Policy.disown`` ends that. Raises what ``fsaccess.enable`` does,
    and RestrictError before Linux 6.16; nothing is left behind then.
    """
    if not is_plan(plan):
        raise RestrictError(
            "the plan is not that of the ownerless policy.",
            hint="It is fsaccess_cgroup.plan; `restrict bundle --ownerless` makes others.",
            policy="fsaccess",
        )
    method = keep.method("ownerless")
    reason = method.refuses()
    if reason is not None:
        raise RestrictError(f"the policy cannot be kept by ownerless here: {reason}.")
    attached: list[tuple[int, int]] = []
    cgroup = root_cgroup()
    try:
        return fsaccess.enable(
            plan,
            audit=audit,
            owner=owner,
            initramfs_dev=initramfs_dev,
            status_pin=status_pin,
            settings={"kept": method.number},
            attach=lambda obj: _attach(obj, cgroup, attached),
            before_arm=before_arm,
            step=step,
        )
    except BaseException:
        for program, kind in attached:
            try:
                prog_detach(program, cgroup, kind)
            except KernelError:  # the first error is the one to be told; the others must go, too
                continue
        raise
    finally:
        for program, _kind in attached:
            os.close(program)
        os.close(cgroup)
