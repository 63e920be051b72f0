# SPDX-License-Identifier: BSD-2-Clause
"""Keeping hold of the policy when a foreign init takes over: Debian trixie with sysvinit.

(tests/vm/test_trixie.py is about systemd.)
"""

from __future__ import annotations

import os

from tests.vm import foreign_boot as boot
from tests.vm import probes
from tests.vm.outcome import ALLOWED
from tests.vm.programs import EXIT_STATUS
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any


def _image() -> Path:
    from tools.guest.debian import debian_image
    from tools.guest.packages import toolbox

    return debian_image(toolbox(), "sysvinit")


def _sysvinit(keep: str, *, default: bool = False) -> Scenario:
    """A boot into sysvinit with the policy kept in this way, and what must hold then.

    default: the configuration does not say so.
    """

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        return boot.files(run, keep="" if default else keep)

    scenario = Scenario(
        "sysvinit-" + ("default" if default else keep), lanes=("7.3",),
        initramfs=initramfs,
        disks={"root": _image, "project": boot.project_disk},
    )  # fmt: skip

    @scenario.case()
    def init_is_pid_1_and_has_booted(guest: Guest) -> None:
        assert boot.command("cat", "/proc/1/comm") == "init"
        assert "SysV" in boot.command("/sbin/init", "--version")
        guest.wait(lambda: boot.command("pgrep", "-x", "cron", check=False), "cron runs")
        assert boot.command("runlevel") == "N 2"
        (root,) = [d for d in boot.status().devices if "/" in d.mounts]
        assert root.signed

    @scenario.case()
    def nothing_of_its_own_was_denied(guest: Guest) -> None:
        found = boot.status()
        assert {n: c["denied"] for n, c in found.counters.items() if c["denied"]} == {}
        assert found.counters["exec"]["allowed"] > 30

    @scenario.case()
    def a_program_on_tmpfs_is_denied(guest: Guest) -> None:
        assert boot.control() == EXIT_STATUS  # before the policy it ran
        boot.denied(guest, boot.tmpfs_program(guest))
        guest.expect(probes.run("/usr/bin/true"), ALLOWED)

    @scenario.case()
    def status_says_what_keeps_it(guest: Guest) -> None:
        boot.kept(guest, keep)
        assert default == any(f"keep = auto: {keep}, " in line for line in boot.console())

    @scenario.case()
    def init_executed_again_changes_nothing(guest: Guest) -> None:
        links = boot.link_ids()
        boot.command("telinit", "u")
        guest.wait(lambda: os.path.exists("/run/initctl"), "init listens again")
        boot.command("telinit", "q")
        assert boot.link_ids() == links
        boot.denied(guest, boot.tmpfs_program(guest))

    return scenario


sysvinit_default = _sysvinit("pins", default=True)
# sysvinit leaves fds alone that it does not know; so do its children, and what they start.
sysvinit_exec = _sysvinit("exec")
sysvinit_ownerless = _sysvinit("ownerless")
boot.attacks_on_ownerless(sysvinit_ownerless)
sysvinit_keeper = _sysvinit("keeper")
boot.attacks_on_keeper(sysvinit_keeper)
