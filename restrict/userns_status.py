# SPDX-License-Identifier: BSD-2-Clause
"""What of the userns policy is in force, without an fd of any of its maps."""

from __future__ import annotations

from restrict.policy_status import PolicyStatus
from restrict.userns_pins import PINS

__all__ = ["UsernsStatus", "read"]


class UsernsStatus(PolicyStatus):
    """administrators: the guard lets CAP_SYS_ADMIN of the initial user namespace pass; else the
    owner alone. teardown_lost: ends of namespaces that could not be reported.
    """

    __slots__ = ("administrators", "teardown_lost")
    POLICY = "userns"
    REQUIRED = PolicyStatus.REQUIRED | {"administrators", "teardown_lost"}

    def __init__(self, text: str) -> None:
        self.administrators = False
        self.teardown_lost = 0
        super().__init__(text)

    def line(self, words: list[str]) -> None:
        """Take one line of bpf/userns/status.h."""
        if words[0] == "administrators":
            self.administrators = words[1] == "1"
        elif words[0] == "teardown_lost":
            self.teardown_lost = int(words[1])
        else:
            super().line(words)

    def as_dict(self) -> dict[str, object]:
        return {
            **super().as_dict(),
            "administrators": self.administrators,
            "teardown_lost": self.teardown_lost,
        }

    def owner_lines(self) -> list[str]:
        if self.administrators:
            return ["owner: whoever has CAP_SYS_ADMIN in the initial user namespace"]
        return super().owner_lines()

    def text(self) -> str:
        """The report for people."""
        lines = [self.heading(), *self.owner_lines(), self.guard_line(), *self.counter_lines()]
        if self.teardown_lost:
            lines.append(f"ends of namespaces that were not reported: {self.teardown_lost}")
        return "\n".join(lines)


def read(pins: str = PINS) -> UsernsStatus | None:
    """The state of the policy pinned in ``pins``; None if there is none. Raises RestrictError."""
    return UsernsStatus.at(f"{pins}/status")
