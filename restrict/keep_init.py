# SPDX-License-Identifier: BSD-2-Clause
"""How ``restrict init`` keeps the policy when another program becomes PID 1: ``keep = …``.

``choose`` decides, while the initramfs' files are read and nothing is armed yet. ``auto`` takes the
strongest way that holds under what comes next (restrict/BOOT.md has the order and the reasons):

    the plan is that of the ownerless policy      ownerless
    init = … `restrict init --resume` …           exec: what follows asks for the descriptors
    anything else                                 pins, under the pins policy where its plan is

A generator's initramfs moves /sys by programs that it starts, and the pins policy lets nobody but
the owner do that. So in front of one the pins are made in a filesystem of their own, and the
successor on the verified root (restrict/resume.py) puts the pins policy over it. Until then
nothing runs but the initramfs, which is trusted, and signed files.
"""

from __future__ import annotations

import os

from restrict import fsaccess, handover, keep, keep_keeper, keep_ownerless, keep_pins, pins
from restrict.errors import ConfigError, RestrictError
from restrict.policy import load_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan
    from restrict.config import InitConfig
    from restrict.fsaccess import Policy
    from restrict.pins import Pins

__all__ = ["Keeping", "choose", "way"]

# What is said of each way.
_SAID = {
    "exec": "this process and what it executes",
    "pins": "pins",
    "ownerless": "the root cgroup",
    "keeper": "a process",
}


class Keeping:
    """One boot's way. guard: the pins policy's plan. segment: another initramfs follows."""

    __slots__ = ("_opened", "guard", "name", "said", "segment")

    def __init__(self, name: str, guard: Plan | None, segment: bool) -> None:
        self.name = name
        self.said = _SAID[name]
        self.guard = guard
        self.segment = segment
        self._opened: Pins | None = None

    def enable(
        self,
        plan: Plan,
        *,
        audit: bool,
        initramfs_dev: int,
        status: bool,
        before_arm: Callable[[Object], None] | None,
        step: Callable[[str], None],
    ) -> Policy:
        """The armed policy, kept in this way as far as that is possible before another init.

        Raises what ``fsaccess.enable`` and ``pins.install`` do; nothing is left behind then.
        """
        if self.name == "pins":
            return keep_pins.enable(
                plan,
                audit=audit,
                initramfs_dev=initramfs_dev,
                guard=None if self.segment else self.guard,
                own_filesystem=self.segment,
                before_arm=before_arm,
                step=step,
            )
        # A successor finds by the status what was not handed to it.
        pin = fsaccess.PIN if status or (self.segment and self.name == "ownerless") else None
        if self.name == "ownerless":
            return keep_ownerless.enable(
                plan,
                audit=audit,
                initramfs_dev=initramfs_dev,
                status_pin=pin,
                before_arm=before_arm,
                step=step,
            )
        return fsaccess.enable(
            plan,
            audit=audit,
            initramfs_dev=initramfs_dev,
            status_pin=pin,
            settings={"kept": keep.method(self.name).number},
            before_arm=before_arm,
            step=step,
        )

    def hand_over(self, policy: Policy) -> dict[str, str]:
        """Make the next program inherit what it needs; what to add to its environment."""
        return handover.hand_over(policy)[0] if self.name == "exec" else {}

    def before_switch(self) -> None:
        """Open what ``after_switch`` needs. Raises KernelError, RestrictError."""
        if self.name == "pins" and self.guard is not None:
            self._opened = pins.open_pinned(plan=self.guard)
            if self._opened is None:  # then nobody could take its ownership from PID 1
                raise RestrictError("the pins policy is gone.", path=pins.FOLDER)

    def after_switch(self, policy: Policy, say: Callable[[str], None]) -> None:
        """Let go of a policy that needs no process, or give it to one.

        Only now: the guard lets none but the owner move the mounts that the pins are below.
        """
        if self._opened is not None:
            self._opened.disown()
            self._opened.close()
        if self.name in ("pins", "ownerless"):
            policy.disown()
        elif self.name == "keeper":
            say(f"process {keep_keeper.spawn(policy)} keeps the policy")


def way(settings: InitConfig, plan: Plan, *, segment: bool) -> tuple[str, str]:
    """The way that ``keep`` of the configuration means for this plan and what follows, and why it
    is that one, where it is ``auto``.

    segment: another generator's initramfs follows. Raises ConfigError for what cannot be.
    """
    name, why, ownerless = settings.keep, "", keep_ownerless.is_plan(plan)
    if name == "auto":
        # In a segment ``init`` says nothing of what follows first: the generator's own PID 1.
        name, why = "pins", "init need not know of it"
        if ownerless:
            name, why = "ownerless", "the plan is made for it"
        elif settings.resumes and not segment:
            name, why = "exec", "init resumes it"
    if ownerless != (name == "ownerless"):
        raise ConfigError(
            f"keep = {name} does not fit the plan, which is "
            + ("the ownerless policy's." if ownerless else "not the ownerless policy's."),
            key="keep",
            hint="`restrict bundle --ownerless` makes the plan for keep = ownerless.",
            file=settings.plan,
        )
    if segment and name == "keeper":
        raise ConfigError(
            "keep = keeper is for `restrict init` alone: a generator ends the processes that it "
            "did not start.",
            key="keep",
            hint="Before another generator pins, ownerless and exec keep the policy.",
        )
    if segment and settings.events:
        raise ConfigError(
            "events = yes is for `restrict init` alone: a generator ends the processes that it did "
            "not start.",
            key="events",
            hint="`restrict initramfs successor --events` has the program on the root offer them.",
        )
    return name, why


def choose(
    settings: InitConfig, plan: Plan, say: Callable[[str], None], *, segment: bool = False
) -> Keeping:
    """The ``way`` of this boot, said where it was chosen. Raises what that does; KernelError or
    FormatError if the pins policy's plan is there and cannot be used.
    """
    name, why = way(settings, plan, segment=segment)
    if why:
        say(f"keep = auto: {name}, {why}")
    guard = None
    if name == "pins" and not segment:
        if os.path.exists(settings.pins_plan):
            guard = load_plan(settings.pins_plan)
        else:
            say(f"there is no {settings.pins_plan}: root can take the pins away")
    return Keeping(name, guard, segment)
