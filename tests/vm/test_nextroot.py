# SPDX-License-Identifier: BSD-2-Clause
"""`systemctl soft-reboot` with another root at /run/nextroot, which systemd would enter."""

from __future__ import annotations

import os
import time

from tests.vm import foreign_boot as boot
from tests.vm import probes
from tests.vm.outcome import ALLOWED
from tests.vm.scenario import Guest, Scenario
from tests.vm.test_trixie import image
from tests.vm.waiting import CASE_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def _nextroot(keep: str, *, entered: bool) -> Scenario:
    """entered: whether systemd comes to the other root, which is the same image once more."""

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        return boot.files(run, keep=keep)

    scenario = Scenario(
        f"nextroot-{keep}", lanes=("7.3",), initramfs=initramfs,
        disks={"root": image, "project": boot.project_disk},
    )  # fmt: skip

    def root() -> str:
        return boot.command("findmnt", "-n", "-o", "ID", "/")

    def policy() -> str:
        return f"{boot.link_ids()} {boot.program_ids()}"

    @scenario.case()
    def soft_reboot(guest: Guest) -> None:
        """Ends the tests; what comes of it is for the next case."""
        os.mkdir("/run/nextroot")
        boot.command("mount", "--bind", "/", "/run/nextroot")
        boot.remember(f"{policy()}; root {root()}")
        boot.command("systemctl", "soft-reboot")
        time.sleep(CASE_SECONDS / 2)
        raise AssertionError("the system went on")

    @scenario.case()
    def the_policy_is_the_same(guest: Guest) -> None:
        same, _, before = boot.remembered().partition("; root ")
        assert boot.command("systemctl", "show", "-P", "SoftRebootsCount") == "1"
        assert (policy(), root() != before) == (same, entered)
        # systemd's own words, in the kernel's log: it says that it goes on in the old root.
        log = boot.command("dmesg")
        assert ("Failed to move /run/nextroot to /: Operation not permitted" in log) != entered
        boot.denied(guest, boot.tmpfs_program(guest))
        guest.expect(probes.run("/usr/bin/true"), ALLOWED)

    @scenario.case()
    def the_system_runs(guest: Guest) -> None:
        assert boot.command("systemctl", "is-active", "multi-user.target") == "active"
        assert boot.command("systemctl", "--failed", "--plain", "--no-legend") == ""

    return scenario


# What the pins are below may be moved by nobody, and it would be: systemd stays where it is.
nextroot_pins = _nextroot("pins", entered=False)
nextroot_ownerless = _nextroot("ownerless", entered=True)
