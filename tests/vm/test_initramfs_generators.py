# SPDX-License-Identifier: BSD-2-Clause
"""Debian's initramfs generators with our part in them: booted to the real root, policy armed.

Each image is made by the generator itself (trixie's), after the one command that installs our
part. PID 1 is ours by rdinit=, executes the generator's /init, which mounts the signed root that
our hook has opened, and that root's init= closes the trust in the initramfs.
"""

from __future__ import annotations

from tests.vm import probes
from tests.vm.initramfs_generators import by_initramfs_tools
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.restrict_boot import console
from tests.vm.scenario import Guest, Scenario

_APPEND = (
    "rdinit=/restrict/init root={} rootfstype=erofs ro init=/project/tests/vm/initramfs_next.py"
)


def _take_over(guest: Guest) -> None:
    from restrict import handover
    from restrict.policy import default_plan, load_plan

    guest.state["policy"] = handover.adopt(plan=load_plan(default_plan("fsaccess")))


def booted_to_the_signed_root(guest: Guest) -> None:
    from restrict import status

    for line in console():
        guest.note(line)
    assert any("executing /init" in line for line in console())
    assert any("took over" in line and "was still trusted" in line for line in console())
    found = status.read()
    assert found is not None
    assert (found.in_force, found.mode, found.owner) == (True, "exec", 1)
    assert not found.initramfs_dev
    (device,) = [d for d in found.devices if "/" in d.mounts]
    assert (device.signed, device.root_hash) == (True, guest.images["root"]["root_hash"])


def nothing_of_the_generator_was_denied(guest: Guest) -> None:
    from restrict import status

    found = status.read()
    assert found is not None
    denied = {name: counts["denied"] for name, counts in found.counters.items()}
    assert not any(denied.values()), denied


def programs_on_tmpfs_are_denied(guest: Guest) -> None:
    guest.mount("tmpfs", "/run/mine", "tmpfs", 0)  # /run itself is noexec, so says nothing
    path = probes.write_file("/run/mine/program", program())
    guest.expect(probes.execute(path), refused())
    guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)


def policy_was_handed_over_through_the_generator(guest: Guest) -> None:
    assert guest.state["policy"] is not None


_MAPPED = _APPEND.format("/dev/mapper/root")
initramfs_tools = Scenario(
    "initramfs_tools", initramfs=by_initramfs_tools, append=_MAPPED, lanes=("7.3",)
)

initramfs_tools.setup(_take_over)
for _case in (
    booted_to_the_signed_root,
    policy_was_handed_over_through_the_generator,
    nothing_of_the_generator_was_denied,
    programs_on_tmpfs_are_denied,
):
    initramfs_tools.case()(_case)
