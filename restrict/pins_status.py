# SPDX-License-Identifier: BSD-2-Clause
"""What the pins policy says of itself, for everybody: its pinned iterator, read as text.

No map fd is needed (status.py says why that matters).
"""

from __future__ import annotations

import os

from restrict import status as _status
from restrict.abi import PINS_KINDS
from restrict.errors import RestrictError
from restrict.guard import start_ticks
from restrict.mounts import mounts
from restrict.pins import FOLDER
from restrict.policy import read_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from restrict.status import Status

__all__ = ["PinsStatus", "guarded", "read", "text"]


class PinsStatus:
    """The policy's state. filesystems: user space's device numbers of what is guarded.
    registered: {kind: ids} that others had registered.

    attached: whether every link exists; None where listing links is not allowed.
    """

    __slots__ = ("_common", "attached", "filesystems", "path", "registered")

    def __init__(
        self,
        path: str,
        common: Status,
        filesystems: list[int],
        registered: dict[str, list[int]],
    ) -> None:
        self.path = path
        self.registered = registered
        self._common = common
        self.filesystems = filesystems
        self.attached = _status._attached(common.guard["link"])

    @property
    def armed(self) -> bool:
        return self._common.armed

    @property
    def audit(self) -> bool:
        return self._common.audit

    @property
    def in_force(self) -> bool:
        return self.armed and self.attached is not False

    @property
    def owner(self) -> int:
        """tgid; 0: nobody."""
        return self._common.owner

    @property
    def deputy(self) -> int:
        return self._common.deputy

    @property
    def owner_alive(self) -> bool:
        """Whether the very process that owns it lives; if not, nobody owns it until reboot."""
        return _alive(self.owner, self._common.owner_start_ticks)

    @property
    def deputy_alive(self) -> bool:
        return _alive(self.deputy, self._common.deputy_start_ticks)

    @property
    def guard(self) -> dict[str, list[int]]:
        """The policy's own ids by kind."""
        return {kind: sorted(idents) for kind, idents in self._common.guard.items()}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        return self._common.counters

    def as_dict(self) -> dict[str, object]:
        return {
            "in_force": self.in_force,
            "armed": self.armed,
            "mode": "audit" if self.audit else "deny",
            "version": self._common.version,
            "path": self.path,
            "owner": self.owner,
            "owner_alive": self.owner_alive,
            "deputy": self.deputy or None,
            "filesystems": [
                {"device": f"{os.major(dev)}:{os.minor(dev)}", "mounts": places}
                for dev, places in self.places().items()
            ],
            "guard": self.guard,
            "registered": self.registered,
            "counters": self.counters,
        }

    def places(self) -> dict[int, list[str]]:
        """{device: where this process sees it mounted}."""
        table = mounts()
        return {dev: [m.target for m in table if m.dev == dev] for dev in self.filesystems}


def _alive(tgid: int, ticks: int) -> bool:
    if tgid == 1:
        return True
    try:
        return bool(tgid) and start_ticks(tgid) == ticks
    except (OSError, ValueError):
        return False


def read(path: str = FOLDER) -> PinsStatus | None:
    """The state of the policy installed at ``path``; None if there is none. RestrictError if
    what is there cannot be read."""
    file = f"{path}/pins"
    found = read_status(file)
    if found is None:
        return None
    try:
        common = _status.parse(found)
        devices, registered = _own_lines(found)
    except (ValueError, KeyError):
        raise RestrictError("its status cannot be read.", file=file) from None
    except RestrictError as error:
        raise error.at(file=file) from None
    return PinsStatus(path, common, devices, registered)


def _own_lines(found: str) -> tuple[list[int], dict[str, list[int]]]:
    """The lines that only this policy has."""
    devices = []
    registered: dict[str, list[int]] = {kind: [] for kind in PINS_KINDS}
    for line in found.splitlines():
        key, _, value = line.partition(" ")
        if key == "filesystem":
            devices.append(_status._dev(value))
        elif key.startswith("registered_"):
            registered[key.removeprefix("registered_")].append(int(value))
    return devices, {kind: sorted(idents) for kind, idents in registered.items()}


def guarded(path: str, *, folder: str = FOLDER) -> bool:
    """Whether ``path`` is on a filesystem that an armed, denying pins policy guards."""
    found = read(folder)
    return (
        found is not None
        and found.in_force
        and not found.audit
        and os.stat(path).st_dev in found.filesystems
    )


def text(status: PinsStatus) -> str:
    """The report for people."""
    state = "armed" if status.armed else "not armed"
    if status.armed and status.attached is False:
        state = "NOT in force: not all of its programs are attached"
    elif status.armed and status.audit:
        state += ", audit: would-be denials are reported and allowed"
    owner = f"process {status.owner}"
    if not status.owner_alive:
        owner = "nobody, until the machine is started again"
    lines = [f"pins: {state}", f"owner: {owner}"]
    if status.deputy and status.deputy_alive:
        lines.append(f"deputy: process {status.deputy}")
    for dev, places in status.places().items():
        where = ", ".join(places) or "not mounted here"
        lines.append(f"guards {os.major(dev)}:{os.minor(dev)}: {where}")
    lines.append("registered: " + ", ".join(f"{len(v)} {k}s" for k, v in status.registered.items()))
    for name, values in status.counters.items():
        if values.get("denied") or values.get("audited"):
            lines.append(
                f"  {name}: {values['denied']} denied, {values['audited']} audited, "
                f"{values['dropped']} events dropped"
            )
    return "\n".join(lines)
