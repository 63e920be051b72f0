# SPDX-License-Identifier: BSD-2-Clause
"""``./tools/demo``: one boot, one table of what was tried and what came of it.

Everything in the table but the words for an attempt and what is expected of it was measured in
the guest, and is printed as it comes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from .errors import GuestError
from .lanes import LANES
from .scenarios import Boot

__all__ = ["main"]

_MODULE = "tools.guest.demo_scenario"
_COLUMNS = (("", 2), ("attempt", 43), ("not armed", 9), ("expected", 14), ("happened", 14),
            ("event's reason", 16), ("ms", 6))  # fmt: skip
_REFUSED = re.compile(r"refused with (\w+)")
_KILLED = re.compile(r"killed by (\w+)")


def short(outcome: str) -> str:
    """An outcome in one or two words: ``allowed``, ``refused EPERM``, ``killed SIGSEGV``."""
    if found := _REFUSED.match(outcome):
        # Errno 0: a program that ran and ended with a failure of its own.
        return "refused" if found[1] == "0" else f"refused {found[1]}"
    if found := _KILLED.match(outcome):
        return f"killed {found[1]}"
    return outcome.partition(" (")[0]


class Row:
    """One attempt, as the guest reported it."""

    def __init__(self, number: int, result: dict[str, Any]) -> None:
        self.number = number
        self.result = result
        self.agrees = result["outcome"] == "passed"
        self.control = ""
        self.events: list[dict[str, Any]] = []
        for note in result.get("notes") or []:
            kind, _, text = note.partition(": " if note.startswith("not armed: ") else " ")
            if kind == "not armed":
                self.control = text
            elif kind == "event":
                self.events.append(json.loads(text))
        seconds = result.get("act_seconds")
        self.milliseconds = None if seconds is None else round(seconds * 1000, 1)

    def text(self) -> str:
        """The line of the table."""
        cells = [
            str(self.number),
            self.result.get("attempt") or self.result["case"],
            short(self.control).removeprefix("refused "),
            short(self.result.get("expected", "")),
            short(self.result.get("observed", "")),
            self.events[0]["reason"] if self.events else "-",
            "" if self.milliseconds is None else f"{self.milliseconds:.1f}",
        ]
        return _line(cells) + ("" if self.agrees else "  <- DIFFERS")

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "attempt": self.result.get("attempt"),
            "case": self.result["case"],
            "not_armed": self.control,
            "expected": self.result.get("expected"),
            "happened": self.result.get("observed"),
            "events": self.events,
            "milliseconds": self.milliseconds,
            "agrees": self.agrees,
            "message": self.result.get("message") or None,
        }


def _line(cells: Sequence[str]) -> str:
    parts = []
    for (title, width), cell in zip(_COLUMNS, cells, strict=True):
        right = title in ("", "ms")
        parts.append(cell[:width].rjust(width) if right else cell[:width].ljust(width))
    return " ".join(parts).rstrip()


class Show:
    """Prints events as they come."""

    def __init__(self, as_json: bool, started: float) -> None:
        self.as_json = as_json
        self.started = started
        self.rows: list[Row] = []
        self.other: dict[str, dict[str, Any]] = {}
        self.kernel = ""
        self.failure = ""

    def say(self, text: str = "") -> None:
        """To standard output; with --json to standard error, where it does no harm."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def stamp(self, text: str) -> None:
        """A step on the way."""
        self.say(f"{time.monotonic() - self.started:6.1f} s  {text}")

    def event(self, event: dict[str, Any]) -> None:
        """One event of the guest."""
        from .demo_scenario import BOOT, NEVER_OFF

        kind = event.get("event")
        if kind == "harness":
            self.kernel = str(event["kernel"])
            self.stamp(f"Linux {self.kernel}: PID 1 is on the signed root")
        elif kind == "setup":
            self.failure = str(event.get("failure") or "").strip()
            if not self.failure:
                self.stamp("the policy was taken over; images, overlay and files are in place")
        elif self.failure:
            return  # then no case has run
        elif kind == "result" and event["case"] in (BOOT, NEVER_OFF):
            self.other[str(event["case"])] = event
            if event["case"] == BOOT:
                self.say()
                self.say("What `restrict init` said in the kernel's log:")
                for note in event.get("notes") or []:
                    self.say("  " + (note if len(note) <= 108 else note[:107] + "…"))
                self.say()
                self.say(
                    "Each attempt is made twice: with the policy attached but not armed, and armed."
                )
                self.say()
                head = _line([title for title, _ in _COLUMNS])
                self.say(head)
                self.say("-" * 110)
        elif kind == "result":
            row = Row(len(self.rows) + 1, event)
            self.rows.append(row)
            self.say(row.text())


def _cause(message: str) -> str:
    """The exception's line of a traceback, else all of the message."""
    found = re.findall(r"^[\w.]*(?:Error|Exception|Refusal)\b.*$", message, re.MULTILINE)
    return found[0] if found else message.strip()


def _problems(show: Show, boot: Boot, wanted: int) -> list[str]:
    """Everything that keeps the demonstration from having succeeded."""
    if show.failure:
        return [_cause(show.failure)]
    problems = []
    for result in (*show.other.values(), *(row.result for row in show.rows)):
        if result["outcome"] != "passed":
            name = result.get("attempt") or result["case"]
            problems.append(f"{name}: {_cause(str(result['message']))}")
    if boot.error is not None:
        problems.append(str(boot.error))
    elif boot.outcome is not None and boot.outcome.status != 0:
        problems.append(f"the guest: {boot.outcome.reason}")
    if boot.outcome is not None:
        problems += [f"the guest's kernel: {line}" for line in boot.outcome.trouble]
    if len(show.rows) + len(show.other) != wanted:
        problems.append(f"{len(show.rows) + len(show.other)} of {wanted} results came")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; 0 if all came out as expected, else 1."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--lane", choices=list(LANES), default="7.3", help="which kernel")
    parser.add_argument("--json", action="store_true", help="the table as one JSON document")
    options = parser.parse_args(arguments)
    show = Show(options.json, time.monotonic())

    from .demo_scenario import NEVER_OFF, demo

    cases = [case.name for case in demo.cases.values() if options.lane in case.lanes]
    show.stamp(
        f"preparing a guest with Debian's {options.lane} kernel: packages, images, initramfs"
    )
    boot = Boot(_MODULE, demo, options.lane, cases, show.event)
    try:
        boot.run()
    except KeyboardInterrupt:
        return 130
    problems = _problems(show, boot, len(cases))
    agree = sum(row.agrees for row in show.rows)
    seconds = round(time.monotonic() - show.started, 1)
    seen = "; ".join(show.other.get(NEVER_OFF, {}).get("notes") or [])
    show.say()
    if seen:
        show.say(f"A process from before the policy went on trying to execute: {seen}.")
    for problem in problems:
        show.say(f"PROBLEM: {problem}")
    show.say(f"{agree} of {len(show.rows)} attempts came out as expected; {seconds} s in all.")
    if options.json:
        document = {
            "lane": options.lane,
            "kernel": show.kernel,
            "rows": [row.as_dict() for row in show.rows],
            "prober": seen or None,
            "agree": agree,
            "problems": problems,
            "seconds": seconds,
        }
        print(json.dumps(document, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestError as error:
        print(f"tools/demo: {error}", file=sys.stderr)
        sys.exit(1)
