# SPDX-License-Identifier: BSD-2-Clause
"""What every policy's pinned status says (bpf/common/status.h), and how it is told.

Each policy has an iterator program, whose link its owner pins in bpffs; reading that file runs the
program, which prints globals and counters as text. Nobody gets a map fd by it, and nobody who may
replace the pinned link's program (BPF_LINK_UPDATE works on iterators) gains anything: it is an
iterator over the system's maps as such (iter/bpf_map), whose context cannot be written. An iterator
over a map's elements would hand such a replacement a writable view of the values.

The answer is only as good as the path: root, and nobody else, can put another file there.
"""

from __future__ import annotations

import os

from pybpf.sys import abi as bpf_abi
from restrict.abi import KEPT_BY
from restrict.errors import KernelError, RestrictError
from restrict.guard import is_alive
from restrict.policy import read_status
from restrict.release import existing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["PolicyStatus", "device_number", "pairs"]

_NUMBERS = ("version", "generation", "kept", "events_map")


def device_number(text: str) -> int:
    """User space's number of "MAJOR:MINOR". Raises ValueError."""
    major, colon, minor = text.partition(":")
    if not colon:
        raise ValueError(text)
    return os.makedev(int(major), int(minor))


def pairs(words: list[str]) -> dict[str, str]:
    """``name value name value …`` as a dict. Raises ValueError for an odd number of words."""
    if len(words) % 2:
        raise ValueError(" ".join(words))
    return dict(zip(words[::2], words[1::2], strict=True))


class PolicyStatus:
    """The state that the text of a status iterator tells. Raises RestrictError for a line out of
    form, or a text without what this policy always says.

    attached: whether all links that the guard names exist (its programs, where they are attached
    without a link); False after an owner died without removing its pin, None where listing them is
    not allowed (it needs CAP_SYS_ADMIN).
    guard: {"map", "program", "link": ids}. counters: {operation: {"allowed", …: number}}.
    """

    __slots__ = (
        "armed", "attached", "audit", "counters", "deputy", "deputy_start_ticks", "events_map",
        "generation", "guard", "kept", "owner", "owner_start_ticks", "version",
    )  # fmt: skip
    POLICY = ""
    MODE = "deny"  # what ``mode`` says of a policy that is not in audit mode
    GONE = "not all of its programs are attached"
    REQUIRED = frozenset({"armed", "owner"})

    def __init__(self, text: str) -> None:
        self.armed = False
        self.attached: bool | None = None
        self.audit = False
        self.owner = 0
        self.owner_start_ticks = 0
        self.deputy = 0
        self.deputy_start_ticks = 0
        self.version = 0
        self.generation = 0
        self.kept = 0
        self.events_map = 0
        self.guard: dict[str, list[int]] = {"map": [], "program": [], "link": []}
        self.counters: dict[str, dict[str, int]] = {}
        seen = set()
        for line in text.splitlines():
            words = line.split()
            if not words:
                continue
            seen.add(words[0])
            try:
                self.line(words)
            except (ValueError, LookupError):
                raise RestrictError(
                    f"the status has the line {line!r}, which cannot be read.",
                    hint="The policy and this program are of different versions.",
                ) from None
        if not seen >= self.REQUIRED:
            missing = ", ".join(sorted(self.REQUIRED - seen))
            raise RestrictError(
                f"this is not the status of the {self.POLICY} policy: it says nothing of {missing}."
            )

    def line(self, words: list[str]) -> None:
        """Take one line. One that is not known is of a newer policy and says something further.
        Raises ValueError or LookupError for one out of form."""
        key = words[0]
        if key in ("armed", "audit"):
            setattr(self, key, words[1] == "1")
        elif key in ("owner", "deputy"):
            setattr(self, key, int(words[1]))
            setattr(self, f"{key}_start_ticks", int(pairs(words[2:]).get("start_ticks", "0")))
        elif key in _NUMBERS:
            setattr(self, key, int(words[1]))
        elif key.startswith("guard_") and key[6:] in self.guard:
            self.guard[key[6:]].append(int(words[1]))
        elif key == "counter":
            self.counters[words[1]] = {k: int(v) for k, v in pairs(words[2:]).items()}

    @classmethod
    def at(cls, path: str) -> Self | None:
        """The state of the policy whose status is pinned at ``path``; None if nothing is.

        Works without privileges. Raises RestrictError for what cannot be read or trusted.
        """
        text = read_status(path)
        if text is None:
            return None
        try:
            found = cls(text)
        except RestrictError as e:
            raise e.at(file=path) from None
        links, programs = found.guard["link"], found.guard["program"]
        try:
            found.attached = bool(links) and existing(links) == links
            if found.kept == KEPT_BY.index("ownerless"):
                # Its one link is that of the status, which whoever reads this has seen.
                found.attached &= existing(programs, bpf_abi.BPF_PROG_GET_NEXT_ID) == programs
        except KernelError:
            found.attached = None
        return found

    @property
    def in_force(self) -> bool:
        """Whether it denies, or in audit mode reports, what it is there for."""
        return self.armed and self.attached is not False

    @property
    def mode(self) -> str:
        return "audit" if self.audit else self.MODE

    @property
    def owner_alive(self) -> bool:
        """Whether the very process that owns it lives."""
        return is_alive(self.owner, self.owner_start_ticks)

    @property
    def deputy_alive(self) -> bool:
        return is_alive(self.deputy, self.deputy_start_ticks)

    def as_dict(self) -> dict[str, object]:
        """What ``--json`` prints of every policy."""
        return {
            "policy": self.POLICY,
            "armed": self.armed,
            "attached": self.attached,
            "in_force": self.in_force,
            "mode": self.mode,
            "version": self.version,
            "generation": self.generation,
            "owner": {
                "pid": self.owner,
                "start_ticks": self.owner_start_ticks,
                "alive": self.owner_alive,
            },
            "deputy": {"pid": self.deputy, "alive": self.deputy_alive} if self.deputy else None,
            "guard": {f"{kind}s": idents for kind, idents in self.guard.items()},
            "counters": self.counters,
        }

    # ── for people ──

    def heading(self) -> str:
        """The first line: which policy, and whether it is in force."""
        state = "armed" if self.armed else "not armed"
        if self.armed and self.attached is False:
            state = f"NOT in force: {self.GONE}"
        elif self.armed and self.audit:
            state += ", audit: would-be denials are reported and allowed"
        return f"{self.POLICY}: {state}"

    def owner_lines(self) -> list[str]:
        """Who may change it."""
        owner = f"process {self.owner}"
        if not self.owner:
            owner = "nobody, until the next boot"
        elif not self.owner_alive:
            owner += ", which has ended: nobody, until the next boot"
        lines = [f"owner: {owner}"]
        if self.deputy_alive:
            lines.append(f"deputy: process {self.deputy}")
        return lines

    def guard_line(self) -> str:
        """The ids that nobody else gets an fd of."""
        return "guard: " + "; ".join(f"{k}s {' '.join(map(str, v))}" for k, v in self.guard.items())

    def counter_lines(self) -> list[str]:
        """What has happened; operations that have not are left out."""
        lines = [
            f"  {name}: " + ", ".join(f"{number} {word}" for word, number in counter.items())
            for name, counter in self.counters.items()
            if any(counter.values())
        ]
        return ["counters:", *lines] if lines else ["counters: all are zero"]
