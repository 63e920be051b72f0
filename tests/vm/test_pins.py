# SPDX-License-Identifier: BSD-2-Clause
"""A bpf filesystem whose pins nobody but the owner can pull: attacks by root, with controls."""

from __future__ import annotations

from restrict import pins, pins_status
from tests.vm.outcome import refused
from tests.vm.pins_attacks import ATTACKS, Attack
from tests.vm.pins_policy import (
    attack,
    policy_of,
    prepare,
    prepare_toothless,
    toothless_plan,
)
from tests.vm.scenario import Drive, Guest, Scenario


def check(guest: Guest, tried: Attack) -> None:
    """Unguarded, the act is possible and does what it is said to do; guarded, it is refused and
    reported (or allowed and harmless)."""
    outcome, seen, alive = attack(guest, tried, guard=False, survives=not tried.kills)
    guest.expect(outcome, tried.control)
    assert not seen, seen
    assert alive != tried.kills, "alive" if alive else "dead"
    check_guarded(guest, tried)


def check_guarded(guest: Guest, tried: Attack) -> None:
    outcome, seen, alive = attack(guest, tried, guard=True)
    guest.note(f"guarded: {outcome}; {seen}")
    if tried.operation:
        guest.expect(outcome, refused())
        wanted = [*tried.also, (tried.operation, tried.reason)]
        assert seen == [[*words, "denied"] for words in wanted], seen
    else:
        guest.expect(outcome, tried.control)
        assert not seen, seen
    assert alive, "the pinned link is gone"


def check_toothless(guest: Guest, tried: Attack) -> None:
    """With no hook that refuses, it goes as where nothing is guarded: the check must fail."""
    outcome, seen, _ = attack(guest, tried, guard=True)
    guest.expect(outcome, tried.control)
    assert not refused().matches(outcome), "its control is what the check wants to see"
    assert not seen, seen


def _add(scenario: Scenario, tried: Attack, *, toothless: bool = False) -> None:
    def case(guest: Guest) -> None:
        (check_toothless if toothless else check)(guest, tried)

    scenario.case(name=tried.name, lanes=tried.lanes)(case)


attacks = Scenario("pins", memory=1024, append="rcupdate.rcu_expedited=1")
attacks.setup(prepare)
lockdown = Scenario("pins_lockdown", append="rcupdate.rcu_expedited=1 lockdown=confidentiality")
lockdown.setup(prepare)
toothless = Scenario(
    "pins_toothless",
    drives={"plans": Drive({"toothless": toothless_plan}, signature="none")},
    append="rcupdate.rcu_expedited=1",
)  # fmt: skip
toothless.setup(prepare_toothless)

_seen: set[tuple[str, str]] = set()
for _attack in ATTACKS:
    _add(attacks, _attack)
    # No helper that reads memory by address works under lockdown; one of each kind shows it.
    if (_attack.operation, _attack.reason) not in _seen:
        _seen.add((_attack.operation, _attack.reason))
        _add(lockdown, _attack)
    if _attack.operation:
        _add(toothless, _attack, toothless=True)


@attacks.case()
def status_for_everybody(guest: Guest) -> None:
    found = pins_status.read()
    assert found is not None
    guest.note(found.text())
    assert (found.in_force, found.owner, found.owner_alive) == (True, 1, True)
    assert pins_status.guarded(pins.FOLDER)
    assert not pins_status.guarded("/sys/fs/bpf")
    assert found.registered == policy_of(guest).registered()
    assert not found.strict
    assert "strict: nobody else" not in found.text()
    assert len(found.guard["link"]) == 26
    assert len(found.guard["map"]) == 5


@lockdown.case()
def is_locked_down(guest: Guest) -> None:
    with open("/sys/kernel/security/lockdown") as file:
        assert "[confidentiality]" in file.read()
