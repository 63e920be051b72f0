# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the guest after `restrict init`: reads from the kernel's log when it said what.

Prints "RESULT {"kernel_ms": …, "said": [[ms since the first line of /init, text], …],
"begun": [[ms, step], …]}".
"""

from __future__ import annotations

import json
import os


def records() -> list[tuple[float, str]]:
    """(milliseconds of the log's clock, text) of each record."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    found: list[tuple[float, str]] = []
    while True:
        try:
            head, _, text = os.read(fd, 8192).decode("utf-8", "replace").partition(";")
        except BlockingIOError:
            os.close(fd)
            return found
        # Bytes beyond ASCII come as \xNN.
        raw = text.split("\n")[0].encode("ascii", "replace").decode("unicode_escape")
        text = raw.encode("latin-1").decode("utf-8", "replace")
        found.append((int(head.split(",")[2]) / 1e3, text))


def main() -> None:
    said = records()
    stamp, mark = next((time, text) for time, text in said if text.startswith("bench: first "))
    _, _, first, _, now = mark.split()
    # The log's clock and CLOCK_MONOTONIC start at different moments of the boot.
    origin = stamp - (int(now) - int(first)) / 1e6
    said_at = [
        (time - origin, text.removeprefix("restrict: "))
        for time, text in said
        if text.startswith("restrict: ")
    ]
    steps = next(text for _, text in said if text.startswith("bench: steps "))
    pairs = [item.split(" ", 1) for item in steps.removeprefix("bench: steps ").split(",")]
    begun = [(int(nanoseconds) / 1e6, step) for nanoseconds, step in pairs]
    result = {"kernel_ms": origin, "said": said_at, "begun": begun}
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
