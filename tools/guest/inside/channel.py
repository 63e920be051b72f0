# SPDX-License-Identifier: BSD-2-Clause
"""The way results leave the guest: JSON lines on the second serial port."""

from __future__ import annotations

import json
import os
import sys
import time

__all__ = ["Channel"]

PORT = "/dev/ttyS1"


class Channel:
    """Writes events; the console stays free for the kernel and the programs under test."""

    def __init__(self, port: str = PORT) -> None:
        self._fd = os.open(port, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)

    def send(self, event: str, **fields: object) -> None:
        """Send one event; ``t`` is the time since the kernel's start, in seconds."""
        line = json.dumps({"event": event, "t": round(time.monotonic(), 3), **fields})
        data = line.encode("ascii") + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def crash(self, where: str) -> None:
        """Tell of the exception that is being handled, here and on the console."""
        import traceback

        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        self.send("crash", where=where, traceback=text)
