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

from pybpf.errors import KernelError, PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.plan.ops import ProgLoad
from pybpf.sys import abi
from pybpf.sys.bpf_more import prog_attach, prog_detach
from restrict import fsaccess
from restrict.errors import RestrictError
from restrict.fsaccess import Policy
from restrict.guard import Globals, offsets_of, start_ticks
from restrict.mounts import root_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["NUMBER", "enable", "is_plan"]

NUMBER = 3  # enum policy_keep in bpf/include/policy.h
_ALLOW_MULTI = 1 << 1  # BPF_F_ALLOW_MULTI


def is_plan(plan: Plan) -> bool:
    """Whether the plan is of programs for a cgroup."""
    return any(
        isinstance(op, ProgLoad) and op.expected_attach_type == abi.BPF_LSM_CGROUP
        for op in plan.ops
    )


def _attach(obj: Object, cgroup: int, done: list[tuple[int, int]]) -> None:
    """Attach every program; done: (program's fd, attach type) of those that are."""
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
        done.append((program.fileno(), kind))


def enable(
    plan: Plan,
    *,
    audit: bool = False,
    initramfs_dev: int = 0,
    status_pin: str | None = fsaccess.PIN,
    before_arm: Callable[[Object], None] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Policy:
    """Load, attach, guard and arm, as ``fsaccess.enable`` does; the Policy has no links.

    Closing it ends nothing (but takes the status away: use ``release``). This process owns the
    policy until it stores another owner. Raises what ``fsaccess.enable`` does; nothing is left
    behind then.
    """
    from pybpf.plan.run import run

    if not is_plan(plan):
        raise RestrictError(
            "the plan is not that of the ownerless policy.",
            hint="It is fsaccess_cgroup.plan; restrict.bundle_ownerless makes others.",
            policy="fsaccess",
        )
    name = "load"
    obj: Object | None = None
    status: Link | None = None
    cgroup = -1
    attached: list[tuple[int, int]] = []
    try:
        step(name)
        obj = run(plan)
        places = offsets_of(plan.variables)
        bss = obj.maps[".bss"]
        size = int(bss.info()["value_size"])
        name = "settings"
        step(name)
        with Globals(bss.fileno(), size, places) as values:
            values.set("initramfs_dev", initramfs_dev)
            values.set("kept", NUMBER)
            values.set("owner_tgid", os.getpid())
            values.set("owner_start_ticks", start_ticks(os.getpid()))
        name = "attach"
        step(name)
        cgroup = root_cgroup()
        _attach(obj, cgroup, attached)
        if before_arm is not None:
            name = "lock-out"
            step(name)
            before_arm(obj)
        if status_pin is not None:
            name = "status"
            step(name)
            status = fsaccess._pin_status(obj, status_pin)
        name = "guard"
        step(name)
        with Globals(bss.fileno(), size, places) as values:
            values.set_ids("guard_map_ids", [m.id for m in obj.maps.values()])
            values.set_ids("guard_program_ids", [p.id for p in obj.programs.values()])
            values.set_ids("guard_link_ids", [] if status is None else [status.id])
        policy = Policy(
            {}, Map(bss.dup(), ".bss"), size, Map(obj.maps["events"].dup(), "events"), places,
            status, status_pin,
        )  # fmt: skip
        name = "arm"
        step(name)
        policy.arm(audit=audit)
    except BaseException as e:
        for program, kind in attached:
            prog_detach(program, cgroup, kind)
        if status is not None and status_pin is not None:
            os.unlink(status_pin)
            status.close()
        if obj is not None:
            obj.close()
        if isinstance(e, PybpfError):
            raise e.at(policy="fsaccess", step=name) from None
        raise
    finally:
        if cgroup >= 0:
            os.close(cgroup)
    obj.close()
    return policy
