# SPDX-License-Identifier: BSD-2-Clause
"""The harness as a service of a booted system, where another program is PID 1.

The system may end it (a soft-reboot does) and start it again: /run remembers which cases were
begun. The case that was running then has done what it was for, and what became of it is for the
next cases to see.
"""

from __future__ import annotations

import os
import sys

if "/project" not in sys.path:
    sys.path.insert(0, "/project")

from tools.guest.inside.channel import Channel  # noqa: E402
from tools.guest.inside.harness import load  # noqa: E402
from tools.guest.inside.kernel import reboot  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BEGUN = "/run/guest-tests.begun"
_ENDED = "/run/guest-tests.ended"


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


class _Remembering(Channel):
    """A channel that writes down which cases have begun and ended."""

    def send(self, event: str, **fields: Any) -> None:
        for kind, path in (("start", _BEGUN), ("result", _ENDED)):
            if event == kind:
                with open(path, "a") as file:
                    print(fields["case"], file=file)
        super().send(event, **fields)


def main() -> None:
    """Run the cases that have not begun yet."""
    channel = _Remembering()
    begun, ended = _lines(_BEGUN), _lines(_ENDED)
    channel.send("harness", kernel=os.uname().release, begun=len(begun))
    try:
        run, drives = load()
        for name in begun:
            if name not in ended:
                note = "the system started the tests again"
                channel.send("result", case=name, outcome="passed", message="", notes=[note])
        run["cases"] = [name for name in run["cases"] if name not in begun]
        from tools.guest.inside.cases import run_cases

        run_cases(channel, run, drives)
    except BaseException:
        channel.crash("service")


if __name__ == "__main__":
    try:
        main()
    finally:
        reboot()
