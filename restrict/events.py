# SPDX-License-Identifier: BSD-2-Clause
"""Events of all policies: one record for each denial (or, in audit mode, would-be denial).

The ring buffer's fd is inherited from the owner; it is never opened by id, which the guard
denies to everybody else. A full buffer drops records and counts them (see ``restrict status``).
"""

from __future__ import annotations

import fcntl
import os

from pybpf.errors import UsageError
from restrict import abi
from restrict.errors import RestrictError, system_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["Event", "Reader", "decode"]

_FILESYSTEMS = {
    **{number: name for name, number in abi.MAGICS.items()},
    **{number: name for name, number in abi.NEVER.items()},
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x958458F6: "hugetlbfs",
    0x4D44: "vfat",
    0x6969: "nfs",
    0xCAFE4A11: "bpf",
    0x19800202: "mqueue",
    0x63677270: "cgroup2",
}
_PROT = ((1, "read"), (2, "write"), (4, "exec"))


def _name(table: tuple[str, ...], number: int) -> str:
    return table[number] if number < len(table) else str(number)


class Event:
    """One struct policy_event. time: seconds since boot (CLOCK_BOOTTIME); raw: the record.

    policy: name of the one that refused, which decides what the other words mean.
    """

    __slots__ = (
        "cgroup", "comm", "dev", "flags", "inode", "magic", "object", "operation", "path",
        "path_flags", "pid", "policy", "prot", "raw", "reason", "tid", "time", "uid", "verdict",
    )  # fmt: skip

    def __init__(self, data: bytes | memoryview) -> None:
        if len(data) < abi.EVENT.size:
            raise RestrictError(
                f"an event has {len(data)} bytes where {abi.EVENT.size} are expected",
                hint="The programs and this tool are of different versions.",
            )
        (
            time, operation, reason, verdict, self.pid, self.tid, self.uid, self.cgroup,
            self.inode, self.magic, self.dev, self.prot, self.flags, self.object,
            self.path_flags, length, comm, path, policy,
        ) = abi.EVENT.unpack_from(data)  # fmt: skip
        self.raw = bytes(data)
        self.time = time / 1e9
        self.policy, operations, reasons = (
            abi.POLICIES[policy] if policy < len(abi.POLICIES) else (str(policy), (), ())
        )
        self.operation = _name(operations, operation)
        self.reason = _name(reasons, reason)
        self.verdict = _name(abi.VERDICTS, verdict)
        self.comm = comm.split(b"\0", 1)[0].decode("utf-8", "replace")
        self.path = path[: min(length, len(path))].decode("utf-8", "replace") or None

    @property
    def device(self) -> str:
        """ "254:0"."""
        return f"{self.dev >> 20}:{self.dev & 0xFFFFF}"

    @property
    def filesystem(self) -> str | None:
        """The filesystem's type where its magic is known, else its number; None without a file."""
        return (_FILESYSTEMS.get(self.magic) or hex(self.magic)) if self.magic else None

    @property
    def managed(self) -> int:
        """userns: inode of the managed namespace; 0 for what the guard refuses."""
        return 0 if self.operation.startswith(("bpf_", "ptrace")) else self.object

    @property
    def mount(self) -> int:
        """userns: unique id of the mount; 0: the hook tells none."""
        return int(self.flags)

    @property
    def userns(self) -> int:
        """userns: inode of the process' own user namespace."""
        return int(self.prot)

    def as_dict(self) -> dict[str, object]:
        """What ``--json`` prints, without what does not apply."""
        found: dict[str, object] = {
            "time": self.time,
            "policy": self.policy,
            "verdict": self.verdict,
            "operation": self.operation,
            "reason": self.reason,
            "pid": self.pid,
            "tid": self.tid,
            "uid": self.uid,
            "comm": self.comm,
            "cgroup": self.cgroup,
        }
        if self.magic:
            found |= {
                "filesystem": self.filesystem,
                "magic": self.magic,
                "device": self.device,
            }
            if self.inode:
                found["inode"] = self.inode
        if self.path is not None:
            found["path"] = self.path
            found["path_is_name"] = bool(self.path_flags & abi.PATH_NAME_ONLY)
        if self.operation in ("mmap", "mprotect"):
            found |= {"prot": self.prot, "flags": self.flags}
        if self.policy == "userns" and self.managed:
            found |= {"managed": self.managed, "userns": self.userns}
            if self.mount:
                found["mount"] = self.mount
        elif self.object:
            found["object"] = self.object
        return found

    def text(self) -> str:
        """One line for people."""
        words = [
            f"{self.time:.6f}", *([self.policy] if self.policy != "fsaccess" else []),
            self.verdict, self.operation, self.reason,
            f"pid={self.pid}", f"comm={self.comm!r}", f"uid={self.uid}",
        ]  # fmt: skip
        if self.operation in ("mmap", "mprotect"):
            words.append("prot=" + "+".join(n for b, n in _PROT if self.prot & b))
        if self.magic:
            words += [f"fs={self.filesystem}", f"dev={self.device}"]
            if self.inode:
                words.append(f"ino={self.inode}")
        if self.policy == "userns" and self.managed:
            words += [f"managed={self.managed}", f"userns={self.userns}"]
            if self.mount:
                words.append(f"mount={self.mount}")
        elif self.object:
            words.append(f"object={self.object}")
        if self.path is not None:
            key = "name" if self.path_flags & abi.PATH_NAME_ONLY else "path"
            words.append(f"{key}={self.path!r}")
        elif self.path_flags & abi.PATH_TRUNCATED:
            words.append("path=(too long)")
        return " ".join(words)


def decode(data: bytes | memoryview) -> Event:
    """One record of the ring buffer."""
    return Event(data)


def _no_ring(error: BaseException, fd: int) -> BaseException:
    """What to tell of an fd of something else; every other error as it is."""
    if isinstance(error, UsageError):
        return RestrictError("it is no BPF ring buffer.", fd=fd)
    return error


class Reader:
    """Reads events from an fd of the ring buffer; owns a duplicate of that fd.

    A context manager. Only one reader may consume a ring buffer at a time.
    """

    __slots__ = ("_map", "_ring")

    def __init__(self, fd: int) -> None:
        from pybpf.kernel.map import Map
        from pybpf.kernel.ringbuf import RingBuffer

        try:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as e:
            raise system_error("it is not open", e, "fcntl", fd=fd) from None
        try:
            self._map = Map.from_fd(copy, name="events")
        except BaseException as e:
            os.close(copy)
            raise _no_ring(e, fd) from None
        try:
            self._ring = RingBuffer(self._map)
        except BaseException as e:
            self._map.close()
            raise _no_ring(e, fd) from None

    def fileno(self) -> int:
        """For poll(2): readable when there are events."""
        return self._map.fileno()

    def read(self, consume: Callable[[Event], object], timeout: float | None = 0) -> int:
        """Hand each waiting event to ``consume``; wait at most ``timeout`` seconds for the
        first (None: for ever). Returns how many there were."""
        if timeout != 0 and not self._ring.poll(timeout):
            return 0
        return self._ring.consume(lambda record: consume(Event(record)))

    def close(self) -> None:
        """Take the ring out of memory and close the duplicate."""
        self._ring.close()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
