# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs build --standalone``: it boots to the signed root with the policy armed."""

from __future__ import annotations

import os
from errno import EPERM

from tests.vm import probes
from tests.vm.foreign_boot import refusal
from tests.vm.initramfs_images import segment_and_generator, standalone
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.restrict_boot import console
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

whole = Scenario("whole", initramfs=standalone)


@whole.setup
def take_over(guest: Guest) -> None:
    from restrict import handover
    from restrict.policy import default_plan, load_plan

    guest.state["policy"] = handover.adopt(plan=load_plan(default_plan("fsaccess")))


@whole.case()
def root_is_the_signed_image(guest: Guest) -> None:
    from restrict import status

    found = status.read()
    assert found is not None
    assert (found.in_force, found.mode, found.owner) == (True, "exec", 1)
    assert not found.initramfs_dev
    (device,) = [d for d in found.devices if "/" in d.mounts]
    assert (device.signed, device.root_hash) == (True, guest.images["root"]["root_hash"])


@whole.case()
def the_policy_is_enforced(guest: Guest) -> None:
    path = probes.write_file("/run/program", program())
    guest.expect(probes.execute(path), refused())
    guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)


@whole.case()
def each_step_was_said(guest: Guest) -> None:
    lines = console()
    for line in lines:
        guest.note(line)
    assert any(f"armed: {len(guest.state['policy'].links)} programs" in line for line in lines)
    assert not any("FAILED" in line or "still trusted" in line for line in lines)
    keyring = any("1 certificates in .dm-verity, which is restricted now" in x for x in lines)
    assert keyring == (guest.lane == "7.3")


segment = Scenario(
    "segment", initramfs=segment_and_generator, append="rdinit=/restrict/init -- one two"
)


@segment.setup
def take_over_again(guest: Guest) -> None:
    from restrict import handover
    from restrict.policy import default_plan, load_plan

    guest.state["policy"] = handover.adopt(plan=load_plan(default_plan("fsaccess")))


def _said(name: str) -> str:
    with open(f"/run/test/{name}") as file:
        return file.read().strip()


@segment.case()
def the_generator_ran_under_the_policy(guest: Guest) -> None:
    """Its own programs ran, a copy on a tmpfs did not; it got the kernel's arguments."""
    guest.note(_said("said"))
    assert _said("initramfs") == "allowed"
    assert _said("tmpfs") == "126"
    assert "Operation not permitted" in _said("said")
    assert _said("arguments").startswith("/init one two")  # OVMF adds a word of its own


@segment.case()
def the_window_was_closed_on_the_verified_root(guest: Guest) -> None:
    from restrict import status

    for line in console():
        guest.note(line)
    assert any("took over" in x and "was still trusted" in x for x in console())
    found = status.read()
    assert found is not None
    assert (found.in_force, found.mode, found.owner) == (True, "exec", 1)
    assert not found.initramfs_dev
    (device,) = [d for d in found.devices if "/" in d.mounts]
    assert (device.signed, device.root_hash) == (True, guest.images["root"]["root_hash"])


@segment.case()
def the_policy_is_enforced_on_the_root(guest: Guest) -> None:
    path = probes.write_file("/run/program", program())
    guest.expect(probes.execute(path), refused())
    guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)


# ── the same, kept by what no program of the generator knows of ──


def _by_default(run: Mapping[str, Any]) -> bytes:
    return segment_and_generator(run, keep="")


def _ownerless(run: Mapping[str, Any]) -> bytes:
    return segment_and_generator(run, keep="ownerless")


def kept_through_a_generator(scenario: Scenario, keep: str) -> None:
    """Cases: what is in force on the root is kept in this way, belongs to nobody, and stays."""

    @scenario.case()
    def it_came_to_the_root(guest: Guest) -> None:
        from restrict import status

        for line in console():
            guest.note(line)
        assert any(f"took over the policy kept by {keep}; initramfs" in line for line in console())
        assert not any("FAILED" in line or "take the pins away" in line for line in console())
        assert "RESTRICT_HANDOVER" not in os.environ
        found = status.read()
        assert found is not None
        assert (found.in_force, found.mode, found.owner) == (True, "exec", 0)
        assert not found.initramfs_dev
        assert (found.keep["method"], found.keep["removers"]) == (keep, [])
        (device,) = [d for d in found.devices if "/" in d.mounts]
        assert (device.signed, device.root_hash) == (True, guest.images["root"]["root_hash"])

    @scenario.case()
    def it_denies_nothing_but_what_it_is_for(guest: Guest) -> None:
        guest.mount("tmpfs", "/run/mine", "tmpfs", 0)  # /run itself may be noexec
        path = probes.write_file("/run/mine/program", program())
        guest.expect(probes.execute(path), refused())
        guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)

    @scenario.case()
    def pid_1_is_nobody(guest: Guest) -> None:
        from pybpf.kernel.map import Map
        from restrict import status

        found = status.read()
        assert found is not None
        assert {refusal(Map.from_id, ident) for ident in found.guard["map"]} == {EPERM}


segment_default = Scenario("segment_default", initramfs=_by_default, append="rdinit=/restrict/init")
kept_through_a_generator(segment_default, "pins")


@segment_default.case()
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


segment_ownerless = Scenario(
    "segment_ownerless", initramfs=_ownerless, append="rdinit=/restrict/init", lanes=("7.3",)
)
kept_through_a_generator(segment_ownerless, "ownerless")
