# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs build --standalone``: it boots to the signed root with the policy armed."""

from __future__ import annotations

from tests.vm import probes
from tests.vm.initramfs_images import standalone
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.restrict_boot import console
from tests.vm.scenario import Guest, Scenario

whole = Scenario("whole", initramfs=standalone)


@whole.setup
def take_over(guest: Guest) -> None:
    from restrict import fsaccess, handover

    guest.state["policy"] = handover.adopt(plan=fsaccess.load_plan(fsaccess.default_plan()))


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
