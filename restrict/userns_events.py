# SPDX-License-Identifier: BSD-2-Clause
"""Denials of the userns policy: the records of its ring buffer (bpf/include/userns.h)."""

from __future__ import annotations

import struct

from restrict.errors import RestrictError

__all__ = ["EVENT", "OPERATIONS", "REASONS", "VERDICTS", "Event"]

OPERATIONS = (
    "chown", "mkdir", "mknod", "symlink", "link", "whiteout", "tmpfile", "mqueue", "overlay",
    "setgroups",
)  # fmt: skip
VERDICTS = ("allowed", "denied", "audited")
REASONS = ("none", "mount", "too_deep", "upper", "overlay", "setgroups")

# struct userns_event: time operation reason verdict pid tid uid mount managed userns magic device
# name_length comm name reserved[2].
EVENT = struct.Struct("=Q 6I Q 2I Q 2I 16s 64s 2Q")


def _name(table: tuple[str, ...], number: int) -> str:
    return table[number] if number < len(table) else str(number)


class Event:
    """One struct userns_event. time: seconds since boot; mount: unique mount id."""

    __slots__ = (
        "comm", "dev", "magic", "managed", "mount", "name", "operation", "pid", "reason", "tid",
        "time", "uid", "userns", "verdict",
    )  # fmt: skip

    def __init__(self, data: bytes | memoryview) -> None:
        if len(data) < EVENT.size:
            raise RestrictError(
                f"an event has {len(data)} bytes where {EVENT.size} are expected",
                hint="The programs and this tool are of different versions.",
            )
        (
            time, operation, reason, verdict, self.pid, self.tid, self.uid, self.mount,
            self.managed, self.userns, self.magic, self.dev, length, comm, name, _, _,
        ) = EVENT.unpack_from(data)  # fmt: skip
        self.time = time / 1e9
        self.operation = _name(OPERATIONS, operation)
        self.reason = _name(REASONS, reason)
        self.verdict = _name(VERDICTS, verdict)
        self.comm = comm.split(b"\0", 1)[0].decode("utf-8", "replace")
        self.name = name[: min(length, len(name))].decode("utf-8", "replace") or None

    def as_dict(self) -> dict[str, object]:
        """What ``--json`` prints."""
        found: dict[str, object] = {
            "time": self.time, "verdict": self.verdict, "operation": self.operation,
            "reason": self.reason, "pid": self.pid, "tid": self.tid, "uid": self.uid,
            "comm": self.comm, "managed": self.managed, "userns": self.userns,
        }  # fmt: skip
        if self.magic:
            found["magic"] = self.magic
            found["device"] = f"{self.dev >> 20}:{self.dev & 0xFFFFF}"
        if self.mount:
            found["mount"] = self.mount
        if self.name is not None:
            found["name"] = self.name
        return found

    def text(self) -> str:
        """One line for people."""
        words = [
            f"{self.time:.6f}", self.verdict, self.operation, self.reason, f"pid={self.pid}",
            f"comm={self.comm!r}", f"uid={self.uid}", f"managed={self.managed}",
        ]  # fmt: skip
        if self.magic:
            words += [f"fs={self.magic:#x}", f"dev={self.dev >> 20}:{self.dev & 0xFFFFF}"]
        if self.mount:
            words.append(f"mount={self.mount}")
        if self.name is not None:
            words.append(f"name={self.name!r}")
        return " ".join(words)
