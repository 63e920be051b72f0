# SPDX-License-Identifier: BSD-2-Clause
"""What of the execution policy is in force now, without an fd of any of its maps."""

from __future__ import annotations

import os

from restrict.errors import KernelError, printable
from restrict.fsaccess import PIN
from restrict.policy_status import PolicyStatus, device_number, pairs
from restrict.seccomp import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from restrict.mounts import Mount

__all__ = ["Status", "TrustedDevice", "read"]


class TrustedDevice:
    """A dm-verity device that the policy knows. dev: user space's number.

    signed: trusted. lenient: its table has options under which a valid signature says nothing of
    what is read (ignore_corruption, check_at_most_once), so it is not trusted. held: another table
    was refused, and no resume succeeds until its own is back.
    """

    __slots__ = (
        "algorithm", "changed", "dev", "first_seen", "held", "lenient", "mounts", "name",
        "root_hash", "signed",
    )  # fmt: skip

    def __init__(self, dev: int, signed: bool) -> None:
        self.dev = dev
        self.signed = signed
        self.lenient = False
        self.held = False
        self.first_seen = 0
        self.changed = 0
        self.algorithm: str | None = None
        self.root_hash: str | None = None
        self.name: str | None = None
        self.mounts: list[str] = []

    @property
    def number(self) -> str:
        return f"{os.major(self.dev)}:{os.minor(self.dev)}"

    def as_dict(self) -> dict[str, object]:
        return {
            "device": self.number,
            "name": self.name,
            "signed": self.signed,
            "lenient": self.lenient,
            "held": self.held,
            "algorithm": self.algorithm,
            "root_hash": self.root_hash,
            "first_seen": self.first_seen / 1e9,
            "changed": self.changed / 1e9,
            "mounts": self.mounts,
        }

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.number} {printable(self.name or '?')}: "
            f"{'signed' if self.signed else 'NOT trusted'}"
            f"{' (lenient table)' if self.lenient else ''}"
            f"{' (held: suspended until its own table is back)' if self.held else ''}, "
            f"{self.algorithm or 'root hash'} {self.root_hash or 'unknown'}, "
            + (
                f"mounted on {', '.join(map(printable, self.mounts))}"
                if self.mounts
                else "not mounted here"
            )
        )


class Status(PolicyStatus):
    """fsaccess' state. initramfs_dev: user space's number, 0 when the window is closed.

    truncated: how many devices the text had no room for.
    poke_refused, poke: what is known of the seccomp filter for PTRACE_POKETEXT (seccomp.report),
    which is no part of the pinned text.
    keep: what keeps it attached and what could end it (restrict.keep.describe).
    """

    __slots__ = ("devices", "initramfs_dev", "keep", "poke", "poke_refused", "truncated")
    POLICY = "fsaccess"
    MODE = "exec"
    GONE = "its owner is gone and left this status behind"

    def __init__(self, text: str) -> None:
        self.initramfs_dev = 0
        self.keep: dict[str, Any] = {}
        self.devices: list[TrustedDevice] = []
        self.truncated = 0
        self.poke_refused: bool | None = None
        self.poke = ""
        super().__init__(text)

    def line(self, words: list[str]) -> None:
        """Take one line of bpf/fsaccess/status.h."""
        key = words[0]
        if key == "initramfs_dev":
            self.initramfs_dev = device_number(words[1])
        elif key == "truncated":
            self.truncated = int(words[1])
        elif key == "device":
            values = pairs(words[2:])
            device = TrustedDevice(device_number(words[1]), values.get("signed") == "1")
            device.lenient = values.get("lenient") == "1"
            device.held = values.get("held") == "1"
            device.first_seen = int(values.get("first_seen", "0"))
            device.changed = int(values.get("changed", "0"))
            device.algorithm = values.get("algorithm")
            device.root_hash = values.get("root_hash")
            self.devices.append(device)
        else:
            super().line(words)

    def as_dict(self) -> dict[str, object]:
        window = self.initramfs_dev
        return {
            **super().as_dict(),
            "trust_window": {
                "open": bool(window),
                "device": f"{os.major(window)}:{os.minor(window)}" if window else None,
            },
            "keep": self.keep,
            "devices": [d.as_dict() for d in self.devices],
            "devices_not_shown": self.truncated,
            "ptrace_poke": {"refused": self.poke_refused, "message": self.poke},
        }

    def _kept(self) -> list[str]:
        """What keeps it, and what could end that."""
        if not self.keep or not self.in_force:
            return []
        holds, removers = self.keep["holds"], self.keep["removers"]
        return [
            f"kept by: {self.keep['method']}" + (f" ({holds})" if holds else ""),
            "could be ended by: "
            + ("not known here" if removers is None else "; ".join([*removers, "a reboot"])),
        ]

    def text(self) -> str:
        """The report for people."""
        window = self.initramfs_dev
        lines = [
            self.heading(),
            *self.owner_lines(),
            f"version: {self.version}"
            + (f", generation {self.generation}" if self.generation else ""),
            *self._kept(),
            "trust window: "
            + (f"open for initramfs {os.major(window)}:{os.minor(window)}" if window else "closed"),
            self.guard_line(),
            "devices:" if self.devices else "devices: none",
        ]
        lines += [f"  {device.text()}" for device in self.devices]
        if self.truncated:
            lines.append(f"  and {self.truncated} more")
        lines += self.counter_lines()
        if self.poke:
            lines.append(f"ptrace: {self.poke}")
        return "\n".join(lines)


def _name_devices(status: Status, table: list[Mount]) -> None:
    for device in status.devices:
        device.mounts = [m.target for m in table if m.dev == device.dev]
        try:
            with open(f"/sys/dev/block/{device.number}/dm/name", encoding="utf-8") as file:
                device.name = file.read().strip()
        except OSError:
            pass


def read(path: str = PIN) -> Status | None:
    """The state of the policy whose status is pinned at ``path``; None if nothing is.

    Raises RestrictError for what cannot be read or trusted.
    """
    found = _read(path)
    if path == PIN and (found is None or not found.in_force):
        # Whoever enabled or upgraded a kept policy may have been killed before it was shown there.
        from restrict.keep_pins import in_force

        try:
            alive = in_force()
        except KernelError:  # root alone may look
            alive = []
        if alive:
            return _read(alive[-1].status_path)
    return found


def _read(path: str) -> Status | None:
    from restrict.keep import describe
    from restrict.mounts import mounts

    status = Status.at(path)
    if status is None:
        return None
    _name_devices(status, mounts())
    status.keep = describe(status, path)
    status.poke_refused, status.poke = report()
    return status
