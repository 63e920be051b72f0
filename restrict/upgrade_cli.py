# SPDX-License-Identifier: BSD-2-Clause
"""``restrict pins upgrade``: the next version of a kept execution policy."""

from __future__ import annotations

from restrict.commands import print_json
from restrict.policy import default_plan, load_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from restrict.commands import Add

__all__ = ["add_upgrade"]


def _upgrade(arguments: argparse.Namespace) -> int:
    from restrict import handover, serve
    from restrict.upgrade import upgrade

    plan = load_plan(arguments.plan or default_plan("fsaccess"))
    done = upgrade(plan, reload=arguments.reload, folder=f"{arguments.path}/kept")
    reader = None
    if not arguments.no_events:
        serve.retire()
        reader = serve.spawn(done.policy)
    done.policy.release()
    if arguments.json:
        print_json({**done.as_dict(), "reader": reader})
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


def add_upgrade(add: Add) -> None:
    """The command ``upgrade``, for the group of commands whose ``add`` this is."""
    command = add("upgrade", "put the next version of the execution policy in force", _upgrade)
    command.add_argument("--plan", metavar="FILE", help="the frozen policy (default: restrict's)")
    command.add_argument(
        "--reload", action="store_true", help="replace a version by the same one, too"
    )
    command.add_argument("--no-events", action="store_true", help="leave no reader of events")
    command.add_argument(
        "then", nargs="*", metavar="-- PROGRAM", help="execute this afterwards (as PID 1 must)"
    )
