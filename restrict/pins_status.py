# SPDX-License-Identifier: BSD-2-Clause
"""What the pins policy says of itself, for everybody, without an fd of any of its maps."""

from __future__ import annotations

import os

from restrict.abi import PINS_KINDS
from restrict.errors import printable
from restrict.mounts import mounts
from restrict.pins import FOLDER, STATUS_PIN
from restrict.policy_status import PolicyStatus, device_number

__all__ = ["PinsStatus", "guarded", "guardian", "read"]


class PinsStatus(PolicyStatus):
    """filesystems: user space's device numbers of what is guarded. registered: {kind: ids} that
    the owner had registered, sorted. strict: lazy unmounts are refused to others, of whatever
    filesystem.
    """

    __slots__ = ("filesystems", "registered", "strict")
    POLICY = "pins"

    def __init__(self, text: str) -> None:
        self.filesystems: list[int] = []
        self.strict = False
        self.registered: dict[str, list[int]] = {kind: [] for kind in PINS_KINDS}
        super().__init__(text)
        for idents in self.registered.values():
            idents.sort()

    def line(self, words: list[str]) -> None:
        """Take one line of bpf/pins/status.h."""
        if words[0] == "strict":
            self.strict = words[1] == "1"
        elif words[0] == "filesystem":
            self.filesystems.append(device_number(words[1]))
        elif words[0].startswith("registered_"):
            self.registered[words[0].removeprefix("registered_")].append(int(words[1]))
        else:
            super().line(words)

    def as_dict(self) -> dict[str, object]:
        return {
            **super().as_dict(),
            "filesystems": [
                {"device": f"{os.major(dev)}:{os.minor(dev)}", "mounts": places}
                for dev, places in self.places().items()
            ],
            "registered": self.registered,
            "strict": self.strict,
        }

    def places(self) -> dict[int, list[str]]:
        """{device: where this process sees it mounted}."""
        table = mounts()
        return {dev: [m.target for m in table if m.dev == dev] for dev in self.filesystems}

    def text(self) -> str:
        """The report for people."""
        lines = [self.heading(), *self.owner_lines()]
        for dev, places in self.places().items():
            where = ", ".join(map(printable, places)) or "not mounted here"
            lines.append(f"guards {os.major(dev)}:{os.minor(dev)}: {where}")
        if self.strict:
            lines.append("strict: nobody else unmounts lazily where that can spread to these")
        lines.append(
            "registered: " + ", ".join(f"{len(v)} {k}s" for k, v in self.registered.items())
        )
        return "\n".join([*lines, self.guard_line(), *self.counter_lines()])


def read(path: str = FOLDER) -> PinsStatus | None:
    """The state of the policy installed at ``path``; None if there is none. RestrictError."""
    return PinsStatus.at(f"{path}/{STATUS_PIN}")


def guardian(path: str, *, folder: str = FOLDER) -> PinsStatus | None:
    """The armed, denying pins policy that guards the filesystem that ``path`` is on; None if there
    is none. Raises RestrictError, and OSError where ``path`` cannot be looked at."""
    found = read(folder)
    if found is None or not found.in_force or found.audit:
        return None
    return found if os.stat(path).st_dev in found.filesystems else None


def guarded(path: str, *, folder: str = FOLDER) -> bool:
    """Whether there is a ``guardian``. Raises what that does."""
    return guardian(path, folder=folder) is not None
