# SPDX-License-Identifier: BSD-2-Clause
"""The kernel's log: what it said during a call, and lines of ours for the console.

The device mapper answers a table that it dislikes with EINVAL and puts the reason only into the
log, so errors quote it. Documentation/ABI/testing/dev-kmsg describes the records.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["Console", "KernelLog"]

_RECORD = 8192  # one read(2) gives one record; the kernel's largest is smaller than this


class KernelLog:
    """Lines that the kernel logs between ``with`` and ``lines()``; nothing if unreadable."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:  # dmesg_restrict or no devtmpfs: the errno alone must do then
            self._close()
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def lines(self, *words: str, most: int = 4) -> list[str]:
        """The last ``most`` messages with one of ``words`` in them since the last call."""
        found: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten while we read: go on
                continue
            except OSError:
                break
            if not record:
                break
            text = record.decode("utf-8", "replace").split("\n", 1)[0].partition(";")[2]
            if any(word in text for word in words):
                found.append(text)
        return found[-most:]

    def said(self, *words: str) -> str | None:
        """``The kernel's log says: …`` for a hint, or None. What it does not quote is gone."""
        lines = self.lines(*words)
        return f"The kernel's log says: {' / '.join(lines)}." if lines else None


class Console:
    """Writes lines to the console and, so that they survive, to the kernel's log.

    Opened once while /dev is reachable; never raises, because PID 1 may not die of a closed
    console.
    """

    def __init__(self, name: str, path: str = "/dev/console", log: str = "/dev/kmsg") -> None:
        self._name = name
        self._fds: list[int] = []
        for target, flags in ((path, os.O_NOCTTY), (log, 0)):
            try:
                self._fds.append(os.open(target, os.O_WRONLY | os.O_CLOEXEC | flags))
            except OSError:
                self._fds.append(-1)
        if self._fds == [-1, -1]:
            self._fds[0] = 2  # nothing else is left

    def say(self, text: str, *, priority: int = 5) -> None:
        """Write one line; priority: syslog's 0 to 7 (3 error, 4 warning, 5 notice)."""
        line = " ".join(text.split("\n"))
        for fd, data in (
            (self._fds[0], f"{self._name}: {line}\n"),
            # One write is one record; the kernel takes at most about 1000 bytes of text.
            (self._fds[1], f"<{priority}>{self._name}: {line}"[:960] + "\n"),
        ):
            if fd >= 0:
                try:
                    os.write(fd, data.encode("utf-8", "replace"))
                except OSError:
                    pass

    def close(self) -> None:
        for fd in self._fds:
            if fd > 2:
                os.close(fd)
        self._fds = [-1, -1]
