# SPDX-License-Identifier: BSD-2-Clause
"""``restrict enable --keep …`` for the ways that do not need this process to stay."""

from __future__ import annotations

import os

from restrict import (
    fsaccess,
    handover,
    keep,
    keep_ownerless,
    keep_pins,
    policy,
    seccomp,
    serve,
)
from restrict.errors import RestrictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["add_upgrade", "chosen", "default_plan", "enable"]


def chosen(arguments: argparse.Namespace) -> str:
    """The way of ``restrict enable``: the one asked for, else the strongest that works here."""
    stays = [
        option
        for option, given in (
            ("--foreground", arguments.foreground), ("--events", arguments.events),
            ("--no-status", arguments.no_status),
        )
        if given
    ]  # fmt: skip
    if arguments.keep is None:
        # Audit mode is for trying out: what it leaves behind should end with it.
        return "process" if stays or arguments.audit else keep.strongest("enable").name
    if arguments.keep != "process":
        if stays:
            raise RestrictError(f"{stays[0]} needs a process that stays: use --keep process.")
        reason = keep.method(arguments.keep).refuses()
        if reason is not None:
            raise RestrictError(f"the policy cannot be kept by {arguments.keep} here: {reason}.")
    name: str = arguments.keep
    return name


def default_plan(kept: str) -> str:
    """The frozen policy for this way of keeping."""
    return policy.default_plan("fsaccess_cgroup" if kept == "ownerless" else "fsaccess")


def enable(
    kept: str,
    arguments: argparse.Namespace,
    plan: Plan,
    trusted: int,
    before_arm: Callable[[Object], None],
) -> int:
    """Enable the policy kept by pins or without owner, leave a reader of its events, and end."""
    owner = os.getpid() if arguments.owner is None else arguments.owner
    guard = None
    if kept == "ownerless":
        if arguments.owner is not None:
            raise RestrictError("--owner: the ownerless policy has none.")
        owner = 0
        enabled = keep_ownerless.enable(
            plan, audit=arguments.audit, initramfs_dev=trusted, before_arm=before_arm
        )
        where = "the root cgroup"
    else:
        if not arguments.unguarded:
            guard = policy.load_plan(policy.default_plan("pins"))
        enabled = keep_pins.enable(
            plan,
            audit=arguments.audit,
            owner=owner,
            initramfs_dev=trusted,
            guard=guard,
            before_arm=before_arm,
        )
        where = f"pins in {keep_pins.FOLDER}" + (
            " under the pins policy" if guard is not None else ", which root can take away"
        )
    reader = None if arguments.no_events else serve.spawn(enabled)
    if not owner:
        enabled.disown()
    poke_refused, poke = seccomp.report()
    state = {
        "armed": True,
        "mode": "audit" if arguments.audit else "exec",
        "kept": kept,
        "owner": owner,
        "links": {name: link.id for name, link in enabled.links.items()},
        "initramfs": f"{trusted >> 20}:{trusted & 0xFFFFF}" if trusted else None,
        "status": fsaccess.PIN,
        "pins": keep_pins.FOLDER if kept == "pins" else None,
        "guarded": guard is not None,
        "events": None if reader is None else {"socket": serve.SOCKET, "reader": reader},
        "ptrace_poke": {"refused": poke_refused, "message": poke},
    }
    enabled.release()
    if arguments.json:
        import json

        print(json.dumps(state), flush=True)
        return 0
    whose = f"its owner is process {owner}"
    if owner in (0, os.getpid()):
        whose = (
            "it has no owner" if not owner else "its owner is this process, which ends"
        ) + ": nobody upgrades or ends the policy until the next boot"
    programs = f"{len(enabled.links)} programs, " if enabled.links else ""
    print(
        f"fsaccess is armed ({state['mode']}), {programs}kept by {where}\n{whose}"
        + ("" if poke_refused else f"\nnote: {poke}"),
        flush=True,
    )
    return 0


def _upgrade(arguments: argparse.Namespace) -> int:
    from restrict.upgrade import upgrade

    plan = policy.load_plan(arguments.plan or policy.default_plan("fsaccess"))
    done = upgrade(plan, reload=arguments.reload, folder=f"{arguments.path}/kept")
    reader = None
    if not arguments.no_events:
        serve.retire()
        reader = serve.spawn(done.policy)
    done.policy.release()
    if arguments.json:
        import json

        print(json.dumps({**done.as_dict(), "reader": reader}), flush=True)
    else:
        print(
            f"fsaccess: generation {done.generation}, version {done.version} instead of "
            f"{done.version_before}; {len(done.tests)} refusals seen, {done.devices} devices "
            "carried over" + (f"; removed what was left of {done.cleaned}" if done.cleaned else ""),
            flush=True,
        )
    if arguments.then:
        handover.execute(arguments.then, hint="The upgrade is done.")
    return 0


def add_upgrade(
    add: Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser],
) -> None:
    """The command ``upgrade``, for whoever has the group of commands it belongs to."""
    command = add("upgrade", "put the next version of the execution policy in force", _upgrade)
    command.add_argument("--plan", metavar="FILE", help="the frozen policy (default: restrict's)")
    command.add_argument(
        "--reload", action="store_true", help="replace a version by the same one, too"
    )
    command.add_argument("--no-events", action="store_true", help="leave no reader of events")
    command.add_argument(
        "then", nargs="*", metavar="-- PROGRAM", help="execute this afterwards (as PID 1 must)"
    )
