# SPDX-License-Identifier: BSD-2-Clause
"""``restrict init`` that fails: before the policy is armed all is undone, after it stays on.

Each scenario is a boot that does not reach its root; the cases run in the same PID 1 afterwards.
"""

from __future__ import annotations

import os

from tests.vm import probes
from tests.vm.outcome import refused, trial
from tests.vm.programs import EXIT_STATUS
from tests.vm.restrict_boot import Prober, console, files
from tests.vm.scenario import ALL_LANES, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

PROGRAM = "/run/test/program"


def _status(guest: Guest) -> Any:
    from restrict import status

    return status.read()


def _devices() -> list[str]:
    from restrict.devmapper import CONTROL, DeviceMapper

    if not os.path.exists(CONTROL):
        return []
    with DeviceMapper() as mapper:
        return [name for name, _ in mapper.list()]


def failing(
    name: str,
    step: str,
    message: str,
    *,
    armed: bool,
    append: str = "",
    lanes: Sequence[str] = ("7.3",),
    changes: Mapping[str, Any] | None = None,
    foreign: bool = False,
    disks: Mapping[str, Callable[[], Path]] | None = None,
) -> Scenario:
    """A boot that fails at ``step``, saying ``message``, before or after the policy is armed."""

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        signature = None
        if foreign:
            from tools.guest.keys import signer
            from tools.guest.packages import toolbox

            signature = signer(toolbox(), "foreign").sign(run["images"]["root"]["root_hash"])
        return files(run, signature=signature, **(changes or {}))

    scenario = Scenario(name, initramfs=initramfs, append=append, lanes=lanes, disks=disks)

    @scenario.case()
    def it_said_so(guest: Guest) -> None:
        (line,) = [line for line in console() if "FAILED" in line]
        guest.note(line)
        assert f"FAILED at step '{step}'" in line
        assert ("after enforcement was switched on; it stays on" in line) == armed
        assert ("before enforcement was switched on; everything was undone" in line) != armed
        assert message in line
        assert os.environ["RESTRICT_INIT_STATUS"] == "1"

    @scenario.case()
    def nothing_is_half_done(guest: Guest) -> None:
        assert _devices() == []
        assert not os.path.ismount("/sysroot")
        with open("/proc/keys") as keys:
            assert "restrict:root" not in keys.read()

    @scenario.case()
    def enforcement(guest: Guest) -> None:
        found = _status(guest)
        seen = Prober()
        guest.note(str(seen))
        assert seen.other == 0
        if armed:
            assert found is not None
            assert found.in_force
            assert found.owner == 1
            guest.expect(probes.execute(PROGRAM), refused())
            assert seen.before > 0
            assert seen.denied > 0
            assert seen.after == 0
        else:
            from pybpf.sys import abi, bpf

            assert found is None
            outcome = probes.execute(PROGRAM)
            assert outcome.detail == f"exited with {EXIT_STATUS}", str(outcome)
            assert seen.denied == 0
            guest.wait(
                lambda: bpf.next_id(abi.BPF_PROG_GET_NEXT_ID, 0) is None, "no program is left"
            )

    return scenario


unknown_key = failing(
    "unknown-key", "configuration", "no key 'colour'", armed=False, changes={"colour": "red"}
)


@unknown_key.case()
def an_open_keyring_is_restricted_without_a_certificate(guest: Guest) -> None:
    """Nobody has put one in here. Left open, root could do so later, and sign devices."""
    from restrict import init, keyring

    ring = keyring.find_keyring()
    assert ring is not None
    assert ring.payload == "empty"
    assert init._certificates([]) == "0 certificates in .dm-verity, which is restricted now"
    assert init._certificates([]) == "0 certificates in .dm-verity, which was restricted already"
    with open("/etc/restrict/certificate.der", "rb") as file:
        certificate = file.read()
    guest.expect(trial(keyring.add_certificate, certificate, ring.serial), refused())


no_device = failing(
    "no-device", "image", "no device /dev/vdz after 1 s", armed=False,
    changes={"data": "/dev/vdz", "hash_start": "1", "wait": "1"},
)  # fmt: skip
missing_prerequisite = failing(
    "missing-prerequisite", "check", "the last proc_mem.force_override", armed=False,
    append="proc_mem.force_override=ptrace",
)  # fmt: skip
wrong_signer = failing("wrong-signer", "root", "ENOKEY", armed=True, lanes=ALL_LANES, foreign=True)
no_init = failing(
    "no-init", "new root", "the new root has no /sbin/nothing", armed=True,
    changes={"init": "/sbin/nothing"},
)  # fmt: skip
