# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf run``: load and attach, stay until interrupted, and take everything back."""

from __future__ import annotations

from pybpf.cli.common import add_edits, edit, read_object
from pybpf.errors import UsageError
from pybpf.plan.main import Help, arguments, execute
from pybpf.sys.files import read_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from pybpf.plan.ops import Plan

__all__ = ["add", "plain", "run"]


class _Plain:
    """What argparse would make of the arguments of a run that edits nothing."""

    command = "run"
    set = set_max_entries = disable = ()

    def __init__(
        self,
        file: str,
        attach: bool = True,
        seconds: float | None = None,
        pin: str | None = None,
        as_json: bool = False,
    ) -> None:
        self.file = file
        self.no_attach = not attach
        self.seconds = seconds
        self.pin = pin
        self.json = as_json


def plain(words: Sequence[str]) -> _Plain | None:
    """The arguments, where they are a file and options that a self-running bundle has too; None
    where argparse must read them. It takes 8 ms, as much as the rest of running a bundle."""
    try:
        found, files = arguments(words)
    except (Help, UsageError):
        return None
    return _Plain(files[0], **found) if len(files) == 1 else None


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "file", metavar="FILE", help="bundle (pybpf bundle, also NAME.pyz) or BPF object"
    )
    parser.add_argument(
        "--no-attach",
        action="store_true",
        help="load only, and end at once (with --seconds: after that time)",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="end after S seconds instead of on a signal"
    )
    parser.add_argument(
        "--pin",
        metavar="DIR",
        help="pin the links in this directory of a bpf filesystem, and end: programs stay attached",
    )
    parser.add_argument("--json", action="store_true", help="tell what is live as a line of JSON")
    add_edits(parser)


def _plan(path: str, args: Any) -> Plan:
    """The Plan of a bundle, or one compiled from an object for the running kernel."""
    if read_head(path) != b"\x7fELF":
        from pybpf.bundle import read

        if args.set or args.set_max_entries or args.disable:
            raise UsageError("a bundle is executed as it is.", hint="Edit when bundling.")
        return read(path)
    spec = edit(read_object(path), args)
    # Behind the reading, which knows how to import pyelftools quickly.
    from pybpf.compiler.compile import compile

    return compile(spec)


def run(args: argparse.Namespace | _Plain) -> int:
    """Run until SIGINT, SIGTERM or the time given."""
    if args.seconds is not None and not 0 <= args.seconds < 1 << 31:
        raise UsageError(f"--seconds takes a number of seconds, not {args.seconds}.")
    return execute(
        _plan(args.file, args),
        attach=not args.no_attach,
        seconds=args.seconds,
        pin=args.pin,
        as_json=args.json,
    )
