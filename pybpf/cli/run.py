# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf run``: load and attach, stay until interrupted, and take everything back."""

from __future__ import annotations

import signal

from pybpf.cli.common import add_edits, edit, emit, read_object
from pybpf.errors import FormatError, UsageError
from pybpf.plan.ops import Plan
from pybpf.plan.run import run as run_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add", "load_plan", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="Plan file (pybpf bundle) or BPF object")
    parser.add_argument("--no-attach", action="store_true", help="load only")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="end after S seconds instead of on a signal"
    )
    parser.add_argument("--json", action="store_true", help="tell what is live as a line of JSON")
    add_edits(parser)


def load_plan(path: str, args: argparse.Namespace) -> Plan:
    """The Plan of a bundle, or one compiled from an object for the running kernel."""
    with open(path, "rb") as file:
        head = file.read(4)
        if head != b"\x7fELF":
            from pybpf.plan.frozen import from_bytes

            if args.set or args.set_max_entries or args.disable:
                raise UsageError("a Plan file is executed as it is.", hint="Edit when bundling.")
            try:
                return from_bytes(head + file.read())
            except FormatError as exc:
                raise exc.at(file=path) from exc.__cause__
    from pybpf.compiler.compile import compile

    return compile(edit(read_object(path), args))


def run(args: argparse.Namespace) -> int:
    """Run until SIGINT, SIGTERM or the time given."""
    plan = load_plan(args.file, args)
    wanted = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    with run_plan(plan) as live:
        if not args.no_attach:
            live.attach()
        if args.json:
            emit(
                {
                    "object": live.name,
                    "maps": {n: m.id for n, m in live.maps.items()},
                    "programs": {n: p.id for n, p in live.programs.items()},
                    "links": {n: k.id for n, k in live.links.items()},
                }
            )
        else:
            print(
                f"{live.name}: {len(live.programs)} programs loaded, {len(live.links)} attached, "
                f"{len(live.maps)} maps",
                flush=True,
            )
        if args.seconds is not None:
            signal.sigtimedwait(wanted, args.seconds)
        else:
            signal.sigwait(wanted)
    return 0
