# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf relocate``: the final instructions, offline, for any kernel's BTF."""

from __future__ import annotations

import json
import sys

from pybpf.cli.common import add_target, emit, read_object, target_of, warn
from pybpf.compiler.core import source_of
from pybpf.compiler.listing import Listing, listing, map_max_entries
from pybpf.errors import PybpfError
from pybpf.sys.abi_names import ATTACH_TYPE_NAMES, MAP_TYPE_NAMES, PROG_TYPE_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("objects", metavar="OBJ", nargs="+", help="BPF object file")
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON an object")


def run(args: argparse.Namespace) -> int:
    """Print every object; 1 if anything in any of them could not be relocated."""
    target = target_of(args)
    if args.btf is None:
        _ = target.vmlinux  # its absence is one error, not one a program
    status = 0
    for path in args.objects:
        try:
            found = listing(read_object(path), target)
        except PybpfError as exc:
            status = 1
            if args.json:
                emit({"object": path, "error": str(exc), "maps": [], "programs": []})
            else:
                warn("relocate", str(exc))
            continue
        failed = [p for p in found.programs if p.error is not None]
        status = status or int(bool(failed))
        if args.json:
            # Piece by piece: the instructions of large objects are tens of megabytes of text.
            json.dump(found.as_json(path), sys.stdout, ensure_ascii=False)
            print(flush=True)
            continue
        _print(path, found)
        for program in failed:
            warn("relocate", str(program.error))
    return status


def _print(path: str, found: Listing) -> None:
    print(path)
    for index, spec in enumerate(found.maps):
        name = spec.kernel_name or spec.name
        print(
            f"  map {index}: {name} {MAP_TYPE_NAMES.get(spec.type, spec.type)}, key "
            f"{spec.key_size}, value {spec.value_size}, entries {map_max_entries(spec)}, flags "
            f"{spec.flags:#x}"
        )
    for program in found.programs:
        spec_ = program.program
        kind = PROG_TYPE_NAMES.get(spec_.type, str(spec_.type))
        attach = ATTACH_TYPE_NAMES.get(spec_.expected_attach_type, "")
        if program.error is not None:
            print(f"  program {spec_.name} ({spec_.section}): not relocated")
            continue
        print(
            f"  program {spec_.name} ({spec_.section}; {kind}"
            + (f", {attach}" if spec_.expected_attach_type else "")
            + f"): {len(program.insns) // 8} instructions"
            + ("" if spec_.autoload else ", not loaded by default")
        )
        assert program.linked is not None
        for number, start in program.linked.functions:
            function = found.spec.functions[number]
            for outcome in program.outcomes.get(number, ()):
                where = source_of(found.spec, function, outcome.insn)
                text = outcome._replace(insn=start + outcome.insn).text()
                print(f"    {text}" + (f" ({where})" if where else ""))
