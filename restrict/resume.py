# SPDX-License-Identifier: BSD-2-Clause
"""The successor of an initramfs' PID 1, on the verified root: takes the policy over, closes the
trust in the initramfs, and executes the real init.

What it takes over was handed to it as descriptors (restrict/handover.py), or is kept by the kernel,
by pins or without owner, and is found by what it says of itself: then this process opens it, as
its owner, and leaves it to nobody.
"""

from __future__ import annotations

import os
import sys

from pybpf.kernel.map import Map
from restrict import handover, keep, keep_pins, pins, pins_status, serve, status
from restrict.errors import ConfigError, RestrictError, describe
from restrict.fsaccess import Policy
from restrict.guard import GLOBALS
from restrict.kmsg import Console
from restrict.policy import default_plan, load_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = ["resume"]


def _kept() -> tuple[str, Policy | None] | None:
    """How the kernel keeps the policy, and the policy if it is this process'; None if it does not
    keep one that is, or that is nobody's and trusts no initramfs any more."""
    found = status.read()
    if found is None or not found.in_force:
        return None
    method = keep.by_number(found.kept)
    if method is None or method.name not in ("pins", "ownerless"):
        return None
    if not found.owner and not found.initramfs_dev:
        return method.name, None
    if found.owner != os.getpid():
        return None
    opened = {ident: Map.from_id(ident) for ident in found.guard["map"]}
    events = opened.pop(found.events_map, None)
    bss = [each for each in opened.values() if each.name.endswith(".bss")]
    for each in opened.values():
        if each not in bss:
            each.close()
    if events is None or len(bss) != 1:
        raise RestrictError("the policy in force does not name its own maps.")
    places = {n: p for n, p in keep_pins.places_of(bss[0]).items() if n in GLOBALS}
    return method.name, Policy({}, bss[0], bss[0].value_size, events, places)


def _close_window(policy: Policy, what: str, say: Callable[[str], None]) -> None:
    before = policy.close_window()
    number = f"{before >> 20}:{before & 0xFFFFF}"
    say(f"took over {what}" + (f"; initramfs {number} was still trusted" if before else ""))


def _offer(policy: Policy, events: bool, say: Callable[[str], None]) -> None:
    if events and serve.spawn(policy) is None:
        say("nobody offers events: their reader could not be started")


def _hand_on(
    policy: Policy, words: list[str], events: bool, say: Callable[[str], None]
) -> NoReturn:
    """Execute the program with the descriptors that were handed over."""
    _close_window(policy, f"{len(policy.links)} programs", say)
    handover.check_successor(words[0])
    _offer(policy, events, say)
    environment, record = handover.hand_over(policy)
    try:
        handover.execute(words, environment)
    except BaseException:
        handover.take_back(policy, record)
        raise


def _leave(words: list[str], events: bool, pins_plan: str, say: Callable[[str], None]) -> NoReturn:
    """Execute the program once what the kernel keeps belongs to nobody."""
    found = _kept()
    if found is None:
        raise RestrictError(
            f"nothing was handed over ({handover.VARIABLE} is not in the environment), and no "
            "policy of this process' is kept by pins or without owner.",
            hint="The initramfs must have armed it: `restrict init`, or rdinit=/restrict/init.",
        )
    way, policy = found
    if policy is None:
        say(f"the policy is kept by {way} and belongs to nobody")
        handover.execute(words)
    _close_window(policy, f"the policy kept by {way}", say)
    _offer(policy, events, say)
    if way == "pins" and not pins_status.guarded(keep_pins.FOLDER):
        if os.path.exists(pins_plan):
            with policy.globals() as values:
                audit = bool(values.get("audit"))
            pins.install(load_plan(pins_plan), owner=0, audit=audit).close()
        else:
            say(f"there is no {pins_plan}: root can take the pins away")
    policy.disown()
    policy.release()
    handover.execute(words)


def resume(
    arguments: list[str],
    *,
    plan_path: str | None = None,
    pins_plan: str | None = None,
    events: bool = False,
) -> int:
    """``restrict init --resume -- PROGRAM…``: take the policy over and execute PROGRAM.

    What was inherited is validated and handed on with its descriptors; what the kernel keeps
    belongs to nobody afterwards, until the next boot. plan_path: the policy's plan, to hold what
    is inherited against. pins_plan: of the pins policy (default: restrict's own), which is put over
    pins that nothing guards yet. events: leave a process that serves ``restrict events``.
    Returns 1 after a failure; what is in force then stays in force.
    """
    # Another process than PID 1 (tests, a supervisor of its own) has a stderr that is read.
    console = Console("restrict") if os.getpid() == 1 else None

    def say(text: str, priority: int = 5) -> None:
        if console is not None:
            console.say(text, priority=priority)
        else:
            print(f"restrict: {text}", file=sys.stderr)

    try:
        plan = load_plan(plan_path) if plan_path is not None else None
        policy = handover.adopt(plan=plan)
        if not arguments:
            raise ConfigError("there is no program to execute.", hint="Add `-- PROGRAM …`.")
        if policy is not None:
            _hand_on(policy, arguments, events, say)
        _leave(arguments, events, pins_plan or default_plan("pins"), say)
    except BaseException as e:
        say(f"resume FAILED, what is in force stays so: {describe(e)}", 4)
        return 1
