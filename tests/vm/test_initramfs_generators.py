# SPDX-License-Identifier: BSD-2-Clause
"""Debian's initramfs generators with our part in them: booted to the real root, policy armed.

Each image is made by the generator itself (trixie's), after the one command that installs our
part. PID 1 is ours by rdinit=, executes the generator's /init, which mounts the signed root that
our hook has opened, and that root's init= closes the trust in the initramfs.
"""

from __future__ import annotations

from tests.vm.initramfs_cases import handed_over, kept, nothing_was_denied_before, pins_stay
from tests.vm.initramfs_generators import by_dracut, by_dracut_with_systemd, by_initramfs_tools
from tests.vm.scenario import Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_APPEND = (
    "rdinit=/restrict/init root=/dev/mapper/root rootfstype=erofs ro "
    "init=/project/tests/vm/initramfs_next.py"
)
# A boot that goes wrong ends, and does not wait for somebody at a terminal.
_ENDS = f"{_APPEND} rd.shell=0 rd.emergency=reboot rd.timeout=6000"

initramfs_tools = Scenario("initramfs_tools", initramfs=by_initramfs_tools, append=_APPEND)
dracut_systemd = Scenario("dracut_systemd", initramfs=by_dracut_with_systemd, append=_ENDS)
for _scenario in (initramfs_tools, dracut_systemd):
    nothing_was_denied_before(_scenario)
    kept(_scenario, "pins")
    pins_stay(_scenario)

dracut = Scenario("dracut", initramfs=by_dracut, append=_ENDS, lanes=("6.12",))
nothing_was_denied_before(dracut)
handed_over(dracut, "was still trusted")


def _tools_ownerless(run: Mapping[str, Any]) -> bytes:
    return by_initramfs_tools(run, "ownerless")


def _dracut_ownerless(run: Mapping[str, Any]) -> bytes:
    return by_dracut(run, "ownerless")


initramfs_tools_ownerless = Scenario(
    "initramfs_tools_ownerless", initramfs=_tools_ownerless, append=_APPEND, lanes=("7.3",)
)
dracut_ownerless = Scenario(
    "dracut_ownerless", initramfs=_dracut_ownerless, append=_ENDS, lanes=("7.3",)
)
for _scenario in (initramfs_tools_ownerless, dracut_ownerless):
    nothing_was_denied_before(_scenario)
    kept(_scenario, "ownerless")
