# SPDX-License-Identifier: BSD-2-Clause
"""``restrict enable --keep …`` for the ways that do not need this process to stay."""

from __future__ import annotations

import os

from restrict import keep_pins, seccomp, serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = ["enable"]


def enable(
    arguments: argparse.Namespace,
    plan: Plan,
    trusted: int,
    before_arm: Callable[[Object], None],
) -> int:
    """Enable the policy kept by pins, leave a reader of its events, and end."""
    owner = os.getpid() if arguments.owner is None else arguments.owner
    policy = keep_pins.enable(
        plan,
        audit=arguments.audit,
        owner=owner,
        initramfs_dev=trusted,
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
        "status": policy.status_pin,
        "pins": keep_pins.FOLDER,
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
        f"{keep_pins.FOLDER}\n"
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


