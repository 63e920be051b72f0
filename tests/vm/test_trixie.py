# SPDX-License-Identifier: BSD-2-Clause
"""Debian trixie with its own systemd on a signed erofs root, under enforcement, kept by what its
init does not know of: pins, or programs on the root cgroup."""

from __future__ import annotations

import re
import time

from tests.vm import foreign_boot as boot
from tests.vm import probes
from tests.vm.outcome import ALLOWED
from tests.vm.programs import EXIT_STATUS, program
from tests.vm.scenario import Guest, Scenario
from tests.vm.waiting import CASE_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

SERVICES = ("systemd-journald", "systemd-udevd", "systemd-logind", "dbus", "cron")


def image() -> Path:
    from tools.guest.debian import debian_image
    from tools.guest.packages import toolbox

    return debian_image(toolbox())


def _trixie(keep: str, *, default: bool = False, lanes: tuple[str, ...] = ("7.3",)) -> Scenario:
    """A boot into it with the policy kept in this way, and what must hold then.

    default: the configuration does not say so.
    """

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        return boot.files(run, keep="" if default else keep)

    scenario = Scenario(
        "trixie-" + ("default" if default else keep), lanes=lanes,
        initramfs=initramfs,
        disks={"root": image, "project": boot.project_disk},
    )  # fmt: skip

    @scenario.case()
    def systemd_is_pid_1(guest: Guest) -> None:
        assert boot.command("cat", "/proc/1/comm") == "systemd"
        version = boot.command("systemctl", "--version").split("\n")[0]
        guest.note(version)
        assert version.startswith("systemd 257")
        found = boot.status()
        assert (found.owner > 1) == (keep == "keeper")
        assert found.owner != 1
        (root,) = [d for d in found.devices if "/" in d.mounts]
        assert root.signed

    @scenario.case()
    def multi_user_is_reached_and_nothing_failed(guest: Guest) -> None:
        state = boot.command("systemctl", "is-system-running", "--wait", check=False)
        failed = boot.command("systemctl", "--failed", "--plain", "--no-legend")
        guest.note(f"{state}; {failed}; {time.monotonic():.1f} s after the kernel's start")
        assert (state, failed) == ("running", "")
        assert boot.command("systemctl", "is-active", "multi-user.target") == "active"

    @scenario.case()
    def services_run(guest: Guest) -> None:
        assert boot.command("systemctl", "is-active", *SERVICES).split() == ["active"] * len(
            SERVICES
        )

    @scenario.case()
    def nothing_of_its_own_was_denied(guest: Guest) -> None:
        found = boot.status()
        allowed = {name: counts["allowed"] for name, counts in found.counters.items()}
        guest.note(str(allowed))
        assert {n: c["denied"] for n, c in found.counters.items() if c["denied"]} == {}
        assert allowed["exec"] > 30, "it counts nothing"
        journal = boot.command("journalctl", "-b", "-o", "short-monotonic", "--no-pager")
        assert "Reached target multi-user.target" in journal
        refused = [
            line
            for line in journal.split("\n")
            if re.search(r"Operation not permitted|Permission denied|EPERM|EACCES", line)
        ]
        assert refused == []

    @scenario.case()
    def a_program_on_tmpfs_is_denied(guest: Guest) -> None:
        assert boot.control() == EXIT_STATUS  # before the policy it ran
        boot.denied(guest)
        boot.denied(guest, probes.write_file("/tmp/program", program()))
        guest.expect(probes.run("/usr/bin/true"), ALLOWED)

    @scenario.case()
    def a_service_may_run_its_own_files_only(guest: Guest) -> None:
        """systemd itself, PID 1, is refused too when it is to start a program on tmpfs."""
        assert (
            boot.command("systemd-run", "--wait", "--pipe", "--quiet", "/usr/bin/echo", "x") == "x"
        )
        before = boot.status().counters["exec"]["denied"]
        done = boot.command(
            "systemd-run", "--wait", "--collect", "--quiet", boot.PROGRAM, check=False
        )
        guest.note(done)
        assert boot.status().counters["exec"]["denied"] > before

    @scenario.case()
    def status_says_what_keeps_it(guest: Guest) -> None:
        boot.kept(guest, keep)
        assert default == any(f"keep = auto: {keep}, " in line for line in boot.console())

    @scenario.case()
    def daemon_reexec_is_survived(guest: Guest) -> None:
        links = boot.link_ids()
        boot.command("systemctl", "daemon-reexec")
        assert boot.link_ids() == links
        boot.denied(guest)
        guest.expect(probes.run("/usr/bin/true"), ALLOWED)

    @scenario.case()
    def soft_reboot(guest: Guest) -> None:
        """Ends the tests; what comes of it is for the next case, in the system started again."""
        boot.remember(repr(boot.link_ids()))
        boot.command("systemctl", "soft-reboot")
        time.sleep(CASE_SECONDS / 2)
        raise AssertionError("the system went on")

    @scenario.case()
    def soft_reboot_is_survived(guest: Guest) -> None:
        assert boot.command("systemctl", "show", "-P", "SoftRebootsCount") == "1"
        assert repr(boot.link_ids()) == boot.remembered()
        boot.denied(guest)
        boot.denied(guest, probes.write_file("/tmp/program2", program()))
        guest.expect(probes.run("/usr/bin/true"), ALLOWED)

    @scenario.case()
    def it_runs_again_and_nothing_failed(guest: Guest) -> None:
        state = boot.command("systemctl", "is-system-running", "--wait", check=False)
        failed = boot.command("systemctl", "--failed", "--plain", "--no-legend")
        assert (state, failed) == ("running", "")
        assert boot.command("systemctl", "is-active", *SERVICES).split() == ["active"] * len(
            SERVICES
        )

    return scenario


trixie_default = _trixie("pins", default=True, lanes=("7.3", "6.12"))
trixie_ownerless = _trixie("ownerless")
boot.attacks_on_ownerless(trixie_ownerless)
trixie_keeper = _trixie("keeper")
boot.attacks_on_keeper(trixie_keeper)
