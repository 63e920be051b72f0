# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf bundle``: an object compiled to a Plan file that runs on every kernel from 5.17.

With a name that ends in ``.pyz`` the file also has the executor in it: ``python3 -I -S FILE.pyz``
runs it wherever there is a Python, without pybpf (format: ``pybpf.pyz.container``).
"""

from __future__ import annotations

import os
import tempfile

from pybpf.cli.common import add_edits, edit, read_object
from pybpf.compiler.compile import compile
from pybpf.plan.frozen import to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("object", metavar="OBJ", help="BPF object file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the file to write; NAME.pyz "
        "runs by itself (python3 -I -S NAME.pyz)",
    )
    parser.add_argument(
        "--export",
        metavar="TYPE",
        action="append",
        default=[],
        help='carry the layout of a further type ("struct event")',
    )
    parser.add_argument(
        "--relocate",
        choices=("kernel", "python"),
        default="kernel",
        help="kernel (default): runs on any kernel from 5.17; python: for the running kernel only",
    )
    parser.add_argument("--pin-root", metavar="DIR", help="where maps pinned by name go")
    add_edits(parser)


def run(args: argparse.Namespace) -> int:
    """Write the bundle: whole or not at all."""
    spec = edit(read_object(args.object), args)
    plan = compile(spec, relocate=args.relocate, pin_root=args.pin_root, export=args.export)
    data = to_bytes(plan)
    if args.output.endswith(".pyz"):
        from pybpf.pyz import build

        data = build(data)
    folder = os.path.dirname(args.output) or "."
    try:
        fd, temporary = tempfile.mkstemp(dir=folder, prefix=".bundle-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o644)
            os.replace(temporary, args.output)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        error.filename = args.output  # not that of the temporary file
        raise
    print(f"{args.output}: {len(data)} bytes, {len(plan.programs)} programs, {len(plan.maps)} maps")
    return 0
