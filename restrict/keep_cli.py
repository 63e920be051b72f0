# SPDX-License-Identifier: BSD-2-Clause
"""``restrict enable --keep …`` for the ways that do not need this process to stay."""

from __future__ import annotations

import os

from restrict import fsaccess, keep, keep_pins, pins, seccomp, serve
from restrict.errors import KernelError, RestrictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["add_upgrade", "chosen", "enable"]


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


def enable(
    arguments: argparse.Namespace,
    plan: Plan,
    trusted: int,
    before_arm: Callable[[Object], None],
) -> int:
    """Enable the policy kept by pins, leave a reader of its events, and end."""
    owner = os.getpid() if arguments.owner is None else arguments.owner
    guard = None if arguments.unguarded else pins.load_plan(pins.default_plan())
    policy = keep_pins.enable(
        plan,
        audit=arguments.audit,
        owner=owner,
        initramfs_dev=trusted,
        guard=guard,
        before_arm=before_arm,
    )
    reader = None if arguments.no_events else serve.spawn(policy)
    poke_refused, poke = seccomp.report()
    state = {
        "armed": True,
        "mode": "audit" if arguments.audit else "exec",
        "kept": "pins",
        "owner": owner,
        "links": {name: link.id for name, link in policy.links.items()},
        "initramfs": f"{trusted >> 20}:{trusted & 0xFFFFF}" if trusted else None,
        "status": fsaccess.PIN,
        "pins": keep_pins.FOLDER,
        "guarded": guard is not None,
        "events": None if reader is None else {"socket": serve.SOCKET, "reader": reader},
        "ptrace_poke": {"refused": poke_refused, "message": poke},
    }
    policy.release()
    if arguments.json:
        import json

        print(json.dumps(state), flush=True)
        return 0
    print(
        f"fsaccess is armed ({state['mode']}), {len(policy.links)} programs, kept by pins in "
        f"{keep_pins.FOLDER}"
        + (" under the pins policy" if guard is not None else ", which root can take away")
        + "\n"
        + (
            "its owner is this process, which ends: nobody upgrades or ends the policy until "
            "the next boot"
            if owner == os.getpid()
            else f"its owner is process {owner}"
        )
        + ("" if poke_refused else f"\nnote: {poke}"),
        flush=True,
    )
    return 0


def _upgrade(arguments: argparse.Namespace) -> int:
    from restrict.upgrade import upgrade

    plan = fsaccess.load_plan(arguments.plan or fsaccess.default_plan())
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
    words = arguments.then
    if words:
        try:
            os.execvp(words[0], words)
        except OSError as e:
            raise KernelError(
                f"it cannot be executed: {e.strerror}. The upgrade is done.",
                errno=e.errno or 0,
                call="execve",
                program=words[0],
            ) from None
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
