# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf features``: what the running kernel can do, tried rather than told by its version."""

from __future__ import annotations

from pybpf.cli.common import emit
from pybpf.kernel import features
from pybpf.sys.abi_names import MAP_TYPE_NAMES, PROG_TYPE_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add", "run"]

_WORDS = {True: "yes", False: "no", None: "unknown (privileges?)"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="a line of JSON")


def run(args: argparse.Namespace) -> int:
    """Probe and print everything."""
    found = {
        "features": {name: features.probe(name) for name in features.probes()},
        "map_types": {
            name: features.map_type(number) for number, name in MAP_TYPE_NAMES.items() if number
        },
        "program_types": {
            name: features.program_type(number)
            for number, name in PROG_TYPE_NAMES.items()
            if number
        },
    }
    if args.json:
        emit(found)
        return 0
    for title, group in found.items():
        print(f"{title.replace('_', ' ')}:")
        for name, there in group.items():
            print(f"  {name}: {_WORDS[there]}")
    return 0
