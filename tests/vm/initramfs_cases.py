# SPDX-License-Identifier: BSD-2-Clause
"""Cases on the root that an initramfs of ``restrict initramfs`` has booted: whose image it is, and
that the policy is in force, by whatever way it came there."""

from __future__ import annotations

import os
from errno import EPERM

from tests.vm import probes
from tests.vm.foreign_boot import refusal
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.restrict_boot import console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from restrict.status import Status
    from tests.vm.scenario import Guest, Scenario

__all__ = ["handed_over", "kept", "nothing_was_denied_before", "pins_stay"]


def _on_the_root(guest: Guest, owner: int, said: str) -> Status:
    from restrict import status

    for line in console():
        guest.note(line)
    assert any(said in line for line in console())
    assert not any("FAILED" in line or "take the pins away" in line for line in console())
    found = status.read()
    assert found is not None
    assert (found.in_force, found.mode, found.owner) == (True, "exec", owner)
    assert not found.initramfs_dev
    (device,) = [d for d in found.devices if "/" in d.mounts]
    assert (device.signed, device.root_hash) == (True, guest.images["root"]["root_hash"])
    return found


def _enforced(scenario: Scenario) -> None:
    @scenario.case()
    def programs_on_tmpfs_are_denied(guest: Guest) -> None:
        guest.mount("tmpfs", "/run/mine", "tmpfs", 0)  # /run itself may be noexec: says nothing
        path = probes.write_file("/run/mine/program", program())
        guest.expect(probes.execute(path), refused())
        guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)


def _heard() -> bool:
    """Whether the reader that the successor left has the denial of ``programs_on_tmpfs``."""
    from restrict import serve
    from restrict.events import decode

    found: list[tuple[str, str, str]] = []

    def consume(item: bytes | int) -> bool:
        if isinstance(item, bytes):
            event = decode(item)
            name = (event.path or "").rpartition("/")[2]  # all that ownerless programs know
            found.append((event.operation, event.reason, name))
        return True

    assert serve.connect(consume, follow=False)
    return ("exec", "filesystem", "program") in found


def nothing_was_denied_before(scenario: Scenario) -> None:
    """A case, to come before those that provoke a denial: the generator met none."""

    @scenario.case()
    def nothing_of_the_generator_was_denied(guest: Guest) -> None:
        from restrict import status

        found = status.read()
        assert found is not None
        denied = {name: counts["denied"] for name, counts in found.counters.items()}
        assert not any(denied.values()), denied


def handed_over(scenario: Scenario, said: str) -> None:
    """Cases: PID 1 inherited the policy and is its owner. said: part of a line of the console."""

    @scenario.setup
    def take_over(guest: Guest) -> None:
        from restrict import handover
        from restrict.policy import default_plan, load_plan

        guest.state["policy"] = handover.adopt(plan=load_plan(default_plan("fsaccess")))

    @scenario.case()
    def it_came_to_the_root(guest: Guest) -> None:
        assert guest.state["policy"] is not None
        _on_the_root(guest, 1, said)

    _enforced(scenario)


def kept(scenario: Scenario, keep: str) -> None:
    """Cases: the policy is kept in this way, belongs to nobody, and was not inherited."""

    @scenario.case()
    def it_came_to_the_root(guest: Guest) -> None:
        found = _on_the_root(guest, 0, f"took over the policy kept by {keep}; initramfs")
        assert "RESTRICT_HANDOVER" not in os.environ
        assert (found.keep["method"], found.keep["removers"]) == (keep, [])

    @scenario.case()
    def pid_1_is_nobody(guest: Guest) -> None:
        from pybpf.kernel.map import Map
        from restrict import status

        found = status.read()
        assert found is not None
        assert {refusal(Map.from_id, ident) for ident in found.guard["map"]} == {EPERM}

    _enforced(scenario)

    @scenario.case()
    def its_reader_offers_the_denial(guest: Guest) -> None:
        guest.wait(_heard, "the denial among the events")


def pins_stay(scenario: Scenario) -> None:
    """Cases: root takes none of the pins away."""

    @scenario.case()
    def the_pins_stay(guest: Guest) -> None:
        from restrict import keep_pins, pins_status, status

        assert pins_status.guarded(keep_pins.FOLDER)
        (generation,) = keep_pins.in_force()
        assert refusal(os.unlink, generation.status_path) == EPERM
        assert refusal(os.unlink, f"{generation.folder}/{generation.names()[0]}") == EPERM
        assert refusal(guest.umount, "/sys/fs/bpf/restrict") == EPERM
        assert refusal(lambda: guest.umount("/sys", lazy=True)) == EPERM
        found = status.read()
        assert found is not None
        assert found.in_force
