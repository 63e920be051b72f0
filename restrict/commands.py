# SPDX-License-Identifier: BSD-2-Clause
"""What the commands have in common: ``--json``, groups of them, denials as they come."""

from __future__ import annotations

import fcntl
import os

from restrict.errors import RestrictError, system_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any, TypeVar

    from restrict.events import Event

    Run = Callable[[argparse.Namespace], int]
    Add = Callable[[str, str, Run], argparse.ArgumentParser]
    _T = TypeVar("_T")

__all__ = ["Turn", "command", "descriptor", "group", "opened", "print_json", "show", "watch"]


def print_json(value: object) -> None:
    """One JSON document, on a line of its own, at once."""
    import json

    print(json.dumps(value), flush=True)


def show(event: Event, as_json: bool) -> None:
    """Print an event."""
    if as_json:
        print_json(event.as_dict())
    else:
        print(event.text(), flush=True)


def command(commands: Any, name: str, words: str, run: Run | None) -> argparse.ArgumentParser:
    """Add a command that ``run`` does and that knows --json. words: what it does."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    made.add_argument("--json", action="store_true", help="machine-readable output")
    made.set_defaults(run=run)
    return made


def group(commands: Any, name: str, words: str, option: str, default: str, about: str) -> Add:
    """Add a command with commands of its own; the result adds these, each with ``option``, which
    names a directory."""
    made = commands.add_parser(name, help=words, description=words)
    inner = made.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, words: str, run: Run) -> argparse.ArgumentParser:
        made = command(inner, name, words, run)
        made.add_argument(option, metavar="DIR", default=default, help=f"{about} ({default})")
        return made

    return add


def descriptor(text: str) -> int:
    """The type of an argument that is a file descriptor's number. Raises ValueError."""
    number = int(text)
    if not 0 <= number < 1 << 31:
        raise ValueError(text)
    return number


def opened(found: _T | None, policy: str, path: str) -> _T:
    """``found``, or RestrictError that the policy is not installed at ``path``."""
    if found is None:
        raise RestrictError(
            f"the {policy} policy is not installed there.", path=path,
            hint=f"Type `restrict {policy} install`.",
        )  # fmt: skip
    return found


def watch(
    events_fd: int,
    policy: str,
    as_json: bool,
    stop_fd: int,
    also: tuple[int, Callable[[], None]] | None = None,
) -> None:
    """Print denials, and offer them to `restrict events`, until ``stop_fd`` is readable.

    also: a further fd, and what to call when it is readable. Raises KernelError.
    """
    from restrict.serve import SOCKETS, Server

    def seen(event: Event) -> None:
        if as_json:
            print_json({"event": "denial", **event.as_dict()})
        else:
            print(event.text(), flush=True)

    with Server(events_fd, SOCKETS[policy]) as server:
        server.run(stop_fd, seen, also)


class Turn:
    """In its block this process alone reads a policy's ring buffer, which two cannot: flock(2) on
    a directory of the policy's pins. Raises RestrictError where another process reads."""

    def __init__(self, folder: str, policy: str) -> None:
        self._folder = folder
        self._policy = policy
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.__exit__()
            if isinstance(error, BlockingIOError):
                raise RestrictError(
                    f"another `restrict {self._policy} watch` runs: only one process can read the "
                    "events.",
                    path=self._folder, hint="Read them from it: `restrict events --follow`.",
                ) from None  # fmt: skip
            raise system_error("it cannot be locked", error, "flock", path=self._folder) from None

    def __exit__(self, *exc: object) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
