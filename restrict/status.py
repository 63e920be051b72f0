# SPDX-License-Identifier: BSD-2-Clause
"""What is in force now, without an fd of any of the policy's maps.

The owner pins an iterator program's link in bpffs; reading that file runs the program, which
prints the policy's globals, counters and devices as text. Nobody gets a map fd by it, and nobody
who may replace the pinned link's program (BPF_LINK_UPDATE works on iterators) gains anything:
it is an iterator over the system's maps as such (iter/bpf_map), whose context cannot be written.
An iterator over a map's elements would hand such a replacement a writable view of the values.

The answer is only as good as the path: root, and nobody else, can put another file there.
"""

from __future__ import annotations

import os

from pybpf.sys import abi as bpf_abi
from pybpf.sys import bpf
from restrict.errors import KernelError, RestrictError
from restrict.fsaccess import PIN
from restrict.policy import read_status
from restrict.seccomp import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from restrict.mounts import Mount

__all__ = ["Status", "TrustedDevice", "parse", "read", "text"]


class TrustedDevice:
    """A dm-verity device that the policy knows. dev: user space's number.

    signed: trusted. lenient: its table has options under which a valid signature says nothing of
    what is read (ignore_corruption, check_at_most_once), so it is not trusted.
    """

    __slots__ = (
        "algorithm", "changed", "dev", "first_seen", "lenient", "mounts", "name", "root_hash",
        "signed",
    )  # fmt: skip

    def __init__(self, dev: int, signed: bool) -> None:
        self.dev = dev
        self.signed = signed
        self.lenient = False
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
            "algorithm": self.algorithm,
            "root_hash": self.root_hash,
            "first_seen": self.first_seen / 1e9,
            "changed": self.changed / 1e9,
            "mounts": self.mounts,
        }


class Status:
    """The policy's state. initramfs_dev: user space's number, 0 when the window is closed.

    attached: whether all links that the guard names exist; False after an owner died without
    removing its pin, None where listing links is not allowed.
    poke_refused, poke: what is known of the seccomp filter for PTRACE_POKETEXT (seccomp.report),
    which is no part of the pinned text.
    keep: what keeps it attached and what could end it (restrict.keep.describe).
    """

    __slots__ = (
        "armed", "attached", "audit", "counters", "deputy", "deputy_start_ticks", "devices",
        "events_map", "generation", "guard", "initramfs_dev", "keep", "kept", "owner",
        "owner_start_ticks", "poke", "poke_refused", "truncated", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.armed = False
        self.attached: bool | None = None
        self.audit = False
        self.initramfs_dev = 0
        self.owner = 0
        self.owner_start_ticks = 0
        self.deputy = 0
        self.deputy_start_ticks = 0
        self.version = 0
        self.generation = 0
        self.kept = 0
        self.events_map = 0
        self.keep: dict[str, Any] = {}
        self.guard: dict[str, list[int]] = {"map": [], "program": [], "link": []}
        self.counters: dict[str, dict[str, int]] = {}
        self.devices: list[TrustedDevice] = []
        self.truncated = 0
        self.poke_refused: bool | None = None
        self.poke = ""

    @property
    def in_force(self) -> bool:
        return self.armed and self.attached is not False

    @property
    def mode(self) -> str:
        return "audit" if self.audit else "exec"

    def as_dict(self) -> dict[str, object]:
        window = self.initramfs_dev
        return {
            "policy": "fsaccess",
            "armed": self.armed,
            "attached": self.attached,
            "in_force": self.in_force,
            "mode": self.mode,
            "trust_window": {
                "open": bool(window),
                "device": f"{os.major(window)}:{os.minor(window)}" if window else None,
            },
            "owner": {"pid": self.owner, "start_ticks": self.owner_start_ticks},
            "version": self.version,
            "generation": self.generation,
            "keep": self.keep,
            "guard": {
                "maps": self.guard["map"],
                "programs": self.guard["program"],
                "links": self.guard["link"],
            },
            "devices": [d.as_dict() for d in self.devices],
            "devices_not_shown": self.truncated,
            "counters": self.counters,
            "ptrace_poke": {"refused": self.poke_refused, "message": self.poke},
        }


def _dev(text: str) -> int:
    major, colon, minor = text.partition(":")
    if not colon:
        raise ValueError(text)
    return os.makedev(int(major), int(minor))


def _pairs(words: list[str]) -> dict[str, str]:
    if len(words) % 2:
        raise ValueError(" ".join(words))
    return dict(zip(words[::2], words[1::2], strict=True))


def _line(status: Status, words: list[str]) -> None:
    key = words[0]
    if key in ("armed", "audit"):
        setattr(status, key, words[1] == "1")
    elif key == "initramfs_dev":
        status.initramfs_dev = _dev(words[1])
    elif key in ("owner", "deputy"):
        setattr(status, key, int(words[1]))
        setattr(status, f"{key}_start_ticks", int(_pairs(words[2:]).get("start_ticks", "0")))
    elif key in ("version", "generation", "kept", "events_map"):
        setattr(status, key, int(words[1]))
    elif key.startswith("guard_") and key[6:] in status.guard:
        if words[1] != "0":
            status.guard[key[6:]].append(int(words[1]))
    elif key == "counter":
        status.counters[words[1]] = {k: int(v) for k, v in _pairs(words[2:]).items()}
    elif key == "device":
        values = _pairs(words[2:])
        device = TrustedDevice(_dev(words[1]), values.get("signed") == "1")
        device.lenient = values.get("lenient") == "1"
        device.first_seen = int(values.get("first_seen", "0"))
        device.changed = int(values.get("changed", "0"))
        device.algorithm = values.get("algorithm")
        device.root_hash = values.get("root_hash")
        status.devices.append(device)
    elif key == "truncated":
        status.truncated = int(words[1])
    # A line that is not known here is from a newer policy and says something further.


def parse(text: str) -> Status:
    """The iterator's text (bpf/fsaccess.bpf.c). Raises RestrictError for a line out of form."""
    status = Status()
    seen = set()
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        seen.add(words[0])
        try:
            _line(status, words)
        except (ValueError, IndexError):
            raise RestrictError(
                f"the status has the line {line!r}, which cannot be read."
            ) from None
    if not {"armed", "owner"} <= seen:
        raise RestrictError("the status is cut short: it says nothing of armed or owner.")
    return status


def _name_devices(status: Status, table: list[Mount]) -> None:
    for device in status.devices:
        device.mounts = [m.target for m in table if m.dev == device.dev]
        try:
            with open(f"/sys/dev/block/{device.number}/dm/name", encoding="utf-8") as file:
                device.name = file.read().strip()
        except OSError:
            pass


def _attached(idents: list[int]) -> bool | None:
    """Whether links with all these ids exist; lists ids, which the guard lets everybody do."""
    try:
        return bool(idents) and all(
            bpf.next_id(bpf_abi.BPF_LINK_GET_NEXT_ID, ident - 1) == ident for ident in idents
        )
    except KernelError:
        return None


def read(path: str = PIN) -> Status | None:
    """The state of the policy whose status is pinned at ``path``; None if nothing is."""
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

    text = read_status(path)
    if text is None:
        return None
    try:
        status = parse(text)
    except RestrictError as e:
        raise e.at(file=path) from None
    _name_devices(status, mounts())
    status.attached = _attached(status.guard["link"])
    status.keep = describe(status, path)
    status.poke_refused, status.poke = report()
    return status


def _kept(status: Status) -> list[str]:
    """What keeps it, and what could end that, for people."""
    if not status.keep or not status.in_force:
        return []
    holds, removers = status.keep["holds"], status.keep["removers"]
    return [
        f"kept by: {status.keep['method']}" + (f" ({holds})" if holds else ""),
        "could be ended by: "
        + ("not known here" if removers is None else "; ".join([*removers, "a reboot"])),
    ]


def text(status: Status) -> str:
    """The report for people."""
    window = status.initramfs_dev
    state = "armed" if status.armed else "not armed"
    if status.armed and status.attached is False:
        state = "NOT in force: its owner is gone and left this status behind"
    elif status.armed and status.audit:
        state += ", audit: would-be denials are reported and allowed"
    lines = [
        f"fsaccess: {state}",
        f"owner: process {status.owner}",
        f"version: {status.version}"
        + (f", generation {status.generation}" if status.generation else ""),
        *_kept(status),
        "trust window: "
        + (f"open for initramfs {os.major(window)}:{os.minor(window)}" if window else "closed"),
        "guard: " + "; ".join(f"{k}s {' '.join(map(str, v))}" for k, v in status.guard.items()),
        "devices:" if status.devices else "devices: none",
    ]
    for device in status.devices:
        lines.append(
            f"  {device.number} {device.name or '?'}: "
            f"{'signed' if device.signed else 'NOT trusted'}"
            f"{' (lenient table)' if device.lenient else ''}, "
            f"{device.algorithm or 'root hash'} {device.root_hash or 'unknown'}, "
            + (f"mounted on {', '.join(device.mounts)}" if device.mounts else "not mounted here")
        )
    if status.truncated:
        lines.append(f"  and {status.truncated} more")
    lines.append("counters:" if status.counters else "counters: none")
    for name, counter in status.counters.items():
        lines.append(f"  {name}: " + ", ".join(f"{v} {k}" for k, v in counter.items()))
    if status.poke:
        lines.append(f"ptrace: {status.poke}")
    return "\n".join(lines)
