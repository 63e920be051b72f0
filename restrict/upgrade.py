# SPDX-License-Identifier: BSD-2-Clause
"""The next generation of a policy that is kept by pins, with no moment without enforcement.

    turn → owner → clean → version → births → load → settings → attach → seed → rehearsal
         → status → pins → guard → arm → confirm → seed → publish → drop

Up to ``arm`` the old generation alone is in force, from there on both (what one refuses is
refused), after ``drop`` the new one. What is killed before ``pins`` leaves nothing, between
``pins`` and ``arm`` an inert folder, later a second generation in force: the next upgrade's
``clean`` takes away what is over. An error does so at once.

- *Trusted devices* carry over. The new programs record devices from ``attach`` on, armed or not,
  and what they recorded is never overwritten; what the old generation knows beside that is copied
  afterwards, and looked at again until nothing changes, also once more after ``arm``. So a device
  that is activated meanwhile is known to both, and one that goes is known to none; a copy that came
  too late fits no other device (its disk's sequence number).
- *Fds*: while the new generation is made, the old one's guard covers its maps and programs from
  their birth (bpf/common/births.h).
- *Versions*: a Plan's ``policy_version`` must be higher than that in force; the same only where
  the caller says so (a reload), a lower one never. It is this program that compares, so this keeps
  an old image from being taken for a new one; it does not bind the owner, who may write the
  globals anyway. There is no signed upgrade.

Needs Linux 6.12, and that this process is the owner or its deputy.
"""

from __future__ import annotations

import errno

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.sys import abi as bpf_abi
from restrict import keep_pins, upgrade_test
from restrict.errors import KernelError, RestrictError
from restrict.guard import offsets_of
from restrict.keep_pins import FOLDER, Generation, Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan
    from restrict.fsaccess import Policy
    from restrict.status import Status

__all__ = ["Seed", "Upgraded", "upgrade", "version_of"]

_PASSES = 50


class Upgraded:
    """What an upgrade did. tests: what the new generation was seen to refuse; devices: how many
    records were carried over; cleaned: numbers of generations that a killed process had left.
    policy: open handles of the new generation; release() them.
    """

    __slots__ = ("cleaned", "devices", "generation", "policy", "tests", "version", "version_before")

    policy: Policy

    def __init__(self, generation: Generation, version: int, before: int) -> None:
        self.generation = generation.number
        self.version = version
        self.version_before = before
        self.devices = 0
        self.tests: list[str] = []
        self.cleaned: list[int] = []

    def as_dict(self) -> dict[str, object]:
        return {
            "generation": self.generation,
            "version": self.version,
            "version_before": self.version_before,
            "devices": self.devices,
            "tests": self.tests,
            "cleaned": self.cleaned,
        }


def version_of(plan: Plan) -> int:
    """A Plan's policy_version, from what it puts into .rodata."""
    from pybpf.plan.ops import MapFill

    where, offset, size = plan.variables.get("policy_version", ("", 0, 0))[:3]
    if where not in plan.maps or size != 4:
        raise RestrictError("the plan has no policy_version; it is of another policy, or too old.")
    slot = plan.maps[where][0]
    for op in plan.ops:
        if isinstance(op, MapFill) and op.map == slot:
            value = op.entries[0][1]
            if isinstance(value, bytes):
                return int.from_bytes(value[offset : offset + size], "little")
    raise RestrictError(f"the plan fills no {where}, so its version is not known.")


class Seed:
    """Carries the records of devices from one generation's map to the next one's."""

    def __init__(self, old: Map, new: Map) -> None:
        self.old = old
        self.new = new
        self.copied: dict[bytes, bytes] = {}
        if (old.key_size, old.value_size) != (new.key_size, new.value_size):
            raise RestrictError(
                f"records of devices have {new.value_size} bytes in the new version and "
                f"{old.value_size} in the old, so they cannot be carried over.",
                map="verity_devices",
            )

    def _take_out(self, key: bytes) -> None:
        """What we copied, and only that: the programs may have put their own in its place."""
        if self.new.lookup(key) == self.copied.pop(key):
            self.new.delete(key)

    def step(self) -> bool:
        """One look at all records; whether anything had to be done."""
        changed = False
        for key in list(self.old.raw_keys()):
            value = self.old.lookup(key)
            if value is None or self.copied.get(key) == value:
                continue
            if key in self.copied:
                self._take_out(key)
                changed = True
            try:
                self.new.update(key, value, bpf_abi.BPF_NOEXIST)
            except KernelError as e:
                if e.errno != errno.EEXIST:
                    raise
                continue  # its own programs know the device, and know better
            self.copied[key] = value
            changed = True
        for key in list(self.copied):
            if self.old.lookup(key) is None:
                self._take_out(key)
                changed = True
        return changed

    def settle(self) -> None:
        """Look until a look finds nothing to do. RestrictError if devices never stop changing."""
        for _ in range(_PASSES):
            if not self.step():
                return
        raise RestrictError(
            "devices come and go all the time, so their records could not be carried over.",
            hint="Try again when the machine is quieter.",
        )


def _carry_counters(old: Map, new: Map) -> None:
    """Let the counters go on from where they are."""
    if old.value_size == new.value_size:
        for index in range(min(old.max_entries, new.max_entries)):
            key = index.to_bytes(4, "little")
            value = old.lookup(key)
            if value is not None:
                new.update(key, value)


def _check_version(plan: Plan, present: Status, reload: bool) -> int:
    version = version_of(plan)
    if version < present.version:
        raise RestrictError(
            f"the plan has version {version}, and {present.version} is in force: a lower version "
            "is refused.",
            hint="A lower one can come into force only by a boot.",
        )
    if version == present.version and not reload:
        raise RestrictError(
            f"version {version} is in force already.",
            hint="Reload the same version with --reload (after a module was loaded, for example).",
        )
    return version


def upgrade(
    plan: Plan,
    *,
    reload: bool = False,
    folder: str = FOLDER,
    step: Callable[[str], None] = lambda name: None,
) -> Upgraded:
    """Replace the generation in force. Owner, deputy, audit mode and trust window stay.

    reload: allow the version that is in force. step: told the name of each step before it begins.
    Raises RestrictError, LockoutError, KernelError, VerifierError or PlanError with a place
    ``step``; the generation before is in force then, and nothing is left of the new one.
    """
    name = "turn"

    def told(now: str) -> None:
        nonlocal name
        name = now
        step(now)

    try:
        told("turn")
        with Turn(folder):
            return _upgrade(plan, reload, folder, told)
    except PybpfError as e:
        if "step" in e.where:
            raise
        raise e.at(step=name) from None


def _upgrade(plan: Plan, reload: bool, folder: str, step: Callable[[str], None]) -> Upgraded:
    step("owner")
    alive = keep_pins.in_force(folder)
    state = alive[-1].status() if alive else None
    if state is None:
        raise RestrictError("no policy is kept by pins, so there is none to upgrade.", path=folder)
    keep_pins.require_owner(state, "upgrading the policy")
    step("clean")
    cleaned = keep_pins.clean(folder)
    step("version")
    version = _check_version(plan, state, reload)
    with _Exchange(plan, alive[-1], step) as exchange:
        done = Upgraded(exchange.new, version, state.version)
        done.cleaned = cleaned
        exchange.run(done)
    return done


class _Exchange:
    """One generation in another's place; the maps of both are open inside the ``with`` block."""

    def __init__(self, plan: Plan, old: Generation, step: Callable[[str], None]) -> None:
        self.plan = plan
        self.old = old
        self.new = Generation(old.number + 1, old.parent)
        self.told = step
        self.now = ""
        self.maps: list[Map] = []
        self.audit = False
        self.tests: list[str] = []

    def __enter__(self) -> Self:
        try:
            self.devices = self.old.map("verity_devices")
            self.maps.append(self.devices)
            self.counted = self.old.map("counters")
            self.maps.append(self.counted)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for found in self.maps:
            found.close()

    def step(self, name: str) -> None:
        self.now = name
        self.told(name)

    def run(self, done: Upgraded) -> None:
        self.step("births")
        with self.old.globals() as values:
            self.audit = bool(values.get("audit"))
            window = values.get("initramfs_dev")
            owner, ticks = values.get("owner_tgid"), values.get("owner_start_ticks")
            deputy = values.get("deputy_tgid"), values.get("deputy_start_ticks")
            values.set("guard_births", 1)
        try:
            done.policy = policy = keep_pins.make(
                self.new,
                self.plan,
                audit=self.audit,
                owner=owner,
                owner_ticks=ticks,
                initramfs_dev=window,
                deputy=deputy,
                before_arm=self._inert,
                step=self.step,
            )
            try:
                self._armed(policy)
            except BaseException:
                self._withdraw(policy)
                raise
        except BaseException:
            try:
                with self.old.globals() as values:
                    values.set("guard_births", 0)
            except PybpfError:  # the first error is the one to be told
                pass
            raise
        done.tests = self.tests
        done.devices = len(self.seed.copied)
        # From here on nothing is undone: the new generation is whole and in force.
        self.step("drop")
        # The old one's guard knows the new maps as newborn, for the owner and the deputy of its own
        # time. Half removed it could no longer be told of another deputy, and would go on refusing.
        with self.old.globals() as values:
            values.set("guard_births", 0)
        with self.old.map("births") as births:
            births.clear()
        self.old.remove()

    def _inert(self, obj: Object) -> None:
        """Between attach and arm. Nothing is pinned yet: a kill ends all that is done here."""
        try:
            self._prepare(obj)
        except PybpfError as e:
            raise e.at(step=self.now) from None

    def _prepare(self, obj: Object) -> None:
        self.step("seed")
        known = Map(obj.maps["verity_devices"].dup(), "verity_devices")
        self.maps.append(known)
        self.seed = Seed(self.devices, known)
        self.seed.settle()
        self.step("rehearsal")
        size = obj.maps[".bss"].value_size
        self.tests = upgrade_test.rehearse(
            obj, size, offsets_of(self.plan.variables), refuse=not self.audit
        )
        self.counters = Map(obj.maps["counters"].dup(), "counters")
        self.maps.append(self.counters)
        _carry_counters(self.counted, self.counters)

    def _armed(self, policy: Policy) -> None:
        self.step("confirm")
        upgrade_test.confirm(policy, self.counters, audit=self.audit)
        self.step("seed again")
        self.seed.settle()
        self.step("publish")
        if policy.status is not None:
            keep_pins.publish(policy.status)

    def _withdraw(self, policy: Policy) -> None:
        """Back to the old generation alone, which is in force all the while."""
        try:
            with policy.globals() as values:
                values.set("armed", 0)
            policy.release()
            self.new.remove()
            with Link.from_pin(self.old.status_path) as link:
                keep_pins.publish(link)
        except PybpfError:  # the first error is the one to be told; the next upgrade cleans up
            pass
