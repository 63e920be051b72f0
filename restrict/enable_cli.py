# SPDX-License-Identifier: BSD-2-Clause
"""``restrict enable``."""

from __future__ import annotations

import os
import sys

from restrict import fsaccess, keep, lockout, preflight, seccomp, serve, status
from restrict.commands import command, print_json, show
from restrict.errors import RestrictError
from restrict.guard import ticks_of
from restrict.policy import default_plan, load_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan
    from restrict.events import Event
    from restrict.fsaccess import Policy

__all__ = ["add_parser", "chosen"]


def chosen(arguments: argparse.Namespace) -> str:
    """What is to keep the policy: the way asked for, else the strongest that works here."""
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


def _refuse_second() -> None:
    """Raise RestrictError if the policy is in force."""
    present = status.read()
    if present is None or not present.in_force:
        return
    whose = f"owned by process {present.owner}" if present.owner_alive else "and nobody owns it"
    raise RestrictError(
        f"the policy is in force already, {whose}.",
        hint="End that one, or let its owner replace it (`restrict pins upgrade`), or add "
        "--no-status to stack a second one.",
    )


def _enable(arguments: argparse.Namespace) -> int:
    findings = preflight.check()
    if not arguments.force:
        preflight.require(findings)
    for finding in findings:
        if finding.blocks:
            print(f"restrict: forced past {finding.name}: {finding.message}", file=sys.stderr)
    kept = chosen(arguments)
    owner = os.getpid() if arguments.owner is None else arguments.owner
    ticks_of(owner)
    if kept == "ownerless":
        if arguments.owner is not None:
            raise RestrictError("--owner: the ownerless policy has none.")
        owner = 0
    if not (arguments.no_status or arguments.force):
        _refuse_second()
    name = "fsaccess_cgroup" if kept == "ownerless" else "fsaccess"
    plan = load_plan(arguments.plan or default_plan(name))
    trusted = fsaccess.initramfs_device() if arguments.trust_initramfs else 0
    before_arm = lockout.before_arm(
        plan, resumed=True, refuse=not (arguments.force or arguments.audit)
    )
    act = _stay if kept == "process" else _leave
    act(arguments, kept, owner, plan, trusted, before_arm)
    return 0


def _stay(
    arguments: argparse.Namespace,
    kept: str,
    owner: int,
    plan: Plan,
    trusted: int,
    before_arm: Callable[[Object], None],
) -> None:
    """Enforce until a signal."""

    def seen(event: Event) -> None:
        if arguments.events:
            show(event, arguments.json)

    stop = serve.wait_signals()
    socket = None if arguments.no_events else serve.SOCKET
    with (
        fsaccess.enable(
            plan,
            audit=arguments.audit,
            owner=owner,
            initramfs_dev=trusted,
            before_arm=before_arm,
            status_pin=None if arguments.no_status else fsaccess.PIN,
        ) as policy,
        serve.Server(policy.events.fileno(), socket) as server,
    ):
        _tell(
            arguments, policy, trusted, f"this process\nits owner is process {owner}",
            kept=kept, owner=owner, status=policy.status_pin,
        )  # fmt: skip
        server.run(stop, seen)


def _leave(
    arguments: argparse.Namespace,
    kept: str,
    owner: int,
    plan: Plan,
    trusted: int,
    before_arm: Callable[[Object], None],
) -> None:
    """Leave the policy in force, and a reader of its events."""
    from restrict import keep_ownerless, keep_pins

    guard = None
    if kept == "ownerless":
        where = "the root cgroup"
        policy = keep_ownerless.enable(
            plan, audit=arguments.audit, initramfs_dev=trusted, before_arm=before_arm
        )
    else:
        where = f"pins in {keep_pins.FOLDER}, which root can take away"
        if not arguments.unguarded:
            where = f"pins in {keep_pins.FOLDER} under the pins policy"
            guard = load_plan(default_plan("pins"))
        policy = keep_pins.enable(
            plan,
            audit=arguments.audit,
            owner=owner,
            initramfs_dev=trusted,
            guard=guard,
            before_arm=before_arm,
        )
    reader = None if arguments.no_events else serve.spawn(policy)
    whose = f"its owner is process {owner}"
    if not owner:
        policy.disown()
        whose = "it has no owner: nobody upgrades or ends it until the next boot"
    elif owner == os.getpid():
        whose = (
            "its owner is this process, which ends: nobody upgrades or ends it until the next boot"
        )
    _tell(
        arguments, policy, trusted, f"{where}\n{whose}",
        kept=kept, owner=owner, status=fsaccess.PIN,
        pins=keep_pins.FOLDER if kept == "pins" else None, guarded=guard is not None,
        events=None if reader is None else {"socket": serve.SOCKET, "reader": reader},
    )  # fmt: skip
    policy.release()


def _tell(
    arguments: argparse.Namespace, policy: Policy, trusted: int, by: str, **more: object
) -> None:
    """Say what is in force now. by: what keeps it, for people; more: further keys of --json."""
    # No filter of our own: it would cover this process alone, and what it starts, which is nothing.
    poke_refused, poke = seccomp.report()
    mode = "audit" if arguments.audit else "exec"
    if arguments.json:
        print_json(
            {
                "armed": True,
                "mode": mode,
                "links": {name: link.id for name, link in policy.links.items()},
                "initramfs": f"{trusted >> 20}:{trusted & 0xFFFFF}" if trusted else None,
                "ptrace_poke": {"refused": poke_refused, "message": poke},
                **more,
            }
        )
        return
    programs = f"{len(policy.links)} programs, " if policy.links else ""
    print(
        f"fsaccess is armed ({mode}), {programs}kept by {by}"
        + ("" if poke_refused else f"\nnote: {poke}"),
        flush=True,
    )


def add_parser(commands: Any) -> None:
    """Add ``enable`` to the subparsers of ``restrict``."""
    enable = command(commands, "enable", "enforce", _enable)
    enable.add_argument(
        "--keep", choices=keep.names("enable"),
        help="what keeps it: this process; or pins in a bpf filesystem under the pins policy, or "
        "nothing but the root cgroup (this process then ends); default: the strongest that this "
        "kernel allows, with --audit this process",
    )  # fmt: skip
    enable.add_argument(
        "--unguarded", action="store_true", help="with --keep pins: without the pins policy"
    )
    enable.add_argument("--audit", action="store_true", help="report, but deny nothing")
    enable.add_argument(
        "--plan", metavar="FILE",
        help="the frozen policy (default: /usr/lib/restrict/fsaccess.plan, else restrict's own)",
    )  # fmt: skip
    enable.add_argument(
        "--owner", type=int, metavar="PID",
        help="process that passes the guard instead of this one (1 in production)",
    )  # fmt: skip
    enable.add_argument(
        "--trust-initramfs", action="store_true",
        help="trust the initramfs this runs in while it lasts",
    )  # fmt: skip
    enable.add_argument(
        "--force", action="store_true",
        help="go on although prerequisites are missing or the machine will be locked out",
    )  # fmt: skip
    enable.add_argument("--events", action="store_true", help="print events as they come")
    enable.add_argument("--no-events", action="store_true", help="offer no socket for events")
    enable.add_argument("--no-status", action="store_true", help="pin no status in bpffs")
    enable.add_argument(
        "--foreground", action="store_true",
        help="until this process ends: --keep process (so do --events and --no-status)",
    )  # fmt: skip
