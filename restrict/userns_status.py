# SPDX-License-Identifier: BSD-2-Clause
"""What of the userns policy is in force, without an fd of any of its maps.

The iterator that is pinned beside the maps prints it, as fsaccess' does (restrict/status.py).
"""

from __future__ import annotations

from restrict.errors import KernelError, RestrictError
from restrict.policy import read_status
from restrict.release import existing
from restrict.status import parse
from restrict.userns_pins import PINS

__all__ = ["UsernsStatus", "read"]


class UsernsStatus:
    """The printed state. attached: whether every guarded link still is; None: not known.

    administrators: the guard lets CAP_SYS_ADMIN of the initial user namespace pass; else ``owner``
    alone (0: nobody). teardown_lost: ends of namespaces that could not be reported.
    """

    __slots__ = (
        "administrators", "armed", "attached", "audit", "counters", "guard", "owner",
        "owner_start_ticks", "teardown_lost", "version",
    )  # fmt: skip

    def __init__(self, text: str) -> None:
        common = parse(text)
        words = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) == 2)
        try:
            self.administrators = words["administrators"] == "1"
            self.teardown_lost = int(words["teardown_lost"])
            self.version = int(words.get("version", "0"))
        except (KeyError, ValueError):
            raise RestrictError("this is not the status of the userns policy.") from None
        self.armed = common.armed
        self.audit = common.audit
        self.owner = common.owner
        self.owner_start_ticks = common.owner_start_ticks
        self.guard = common.guard
        self.counters = common.counters
        self.attached: bool | None = None

    @property
    def in_force(self) -> bool:
        return bool(self.armed and self.attached is not False)

    def as_dict(self) -> dict[str, object]:
        """What ``--json`` prints."""
        return {
            "in_force": self.in_force,
            "mode": "audit" if self.audit else "deny",
            "version": self.version,
            "administrators": self.administrators,
            "owner": {"pid": self.owner, "start_ticks": self.owner_start_ticks},
            "guard": {f"{kind}s": ids for kind, ids in self.guard.items()},
            "counters": self.counters,
            "teardown_lost": self.teardown_lost,
        }

    def text(self) -> str:
        """The report for people."""
        state = "armed" if self.armed else "not armed"
        if self.armed and self.attached is False:
            state = "NOT in force: programs are no longer attached"
        elif self.armed and self.audit:
            state += ", audit: would-be denials are reported and allowed"
        who = (
            "CAP_SYS_ADMIN in the initial user namespace" if self.administrators
            else f"process {self.owner} alone" if self.owner
            else "nobody"
        )  # fmt: skip
        lines = [
            f"userns: {state}",
            f"administered by: {who}",
            "guard: " + "; ".join(f"{k}s {' '.join(map(str, v))}" for k, v in self.guard.items()),
            "counters:",
        ]
        for name, counter in self.counters.items():
            if any(counter.values()):
                lines.append(f"  {name}: " + ", ".join(f"{v} {k}" for k, v in counter.items()))
        if self.teardown_lost:
            lines.append(f"ends of namespaces that were not reported: {self.teardown_lost}")
        return "\n".join(lines)


def read(pins: str = PINS) -> UsernsStatus | None:
    """The state of the policy pinned in ``pins``; None if there is none. Raises RestrictError."""
    path = f"{pins}/status"
    text = read_status(path)
    if text is None:
        return None
    try:
        found = UsernsStatus(text)
    except RestrictError as error:
        raise error.at(file=path) from None
    links = found.guard["link"]
    try:
        found.attached = bool(links) and len(existing(links)) == len(links)
    except KernelError:  # listing ids needs CAP_SYS_ADMIN; reading the status does not
        found.attached = None
    return found
