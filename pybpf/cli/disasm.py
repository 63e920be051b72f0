# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf disasm``: programs in the syntax of the kernel's verifier."""

from __future__ import annotations

from pybpf.asm.disasm import disasm
from pybpf.cli.common import add_target, emit, read_object, target_of, warn
from pybpf.compiler.core import source_of
from pybpf.compiler.listing import ProgramListing, listing
from pybpf.errors import FormatError, PybpfError, UsageError
from pybpf.spec import ObjectSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("object", metavar="OBJ", help="BPF object file")
    parser.add_argument("program", metavar="PROGRAM", nargs="*", help="only these programs")
    parser.add_argument(
        "--raw", action="store_true", help="functions as they stand in the file, not relocated"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each program")
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Print the listing; 1 if a program could not be relocated."""
    spec = read_object(args.object)
    status = 0
    what = "function" if args.raw else "program"
    there = [function.name for function in spec.functions] if args.raw else list(spec.programs)
    unknown = [name for name in args.program if name not in there]
    if unknown:
        raise UsageError(
            f"there is no {what} {unknown[0]!r}; {what}s: {', '.join(there)}.", object=args.object
        )
    if args.raw:
        for function in spec.functions:
            if args.program and function.name not in args.program:
                continue
            try:
                listed = disasm(function.insns, spec.byteorder)
            except PybpfError as exc:
                status = 1
                where = {"section": function.section, "function": function.name}
                warn("disasm", str(exc.at(object=args.object, **where)))
                continue
            if args.json:
                rows = [{"insn": line} for line in listed]
                emit({"section": function.section, "function": function.name, "insns": rows})
                continue
            print(f"{function.section} {function.name}:")
            for line in listed:
                print(f"  {line}")
        return status
    for program in listing(spec, target_of(args)).programs:
        if args.program and program.program.name not in args.program:
            continue
        if program.error is not None:
            status = 1
            warn("disasm", str(program.error))
            continue
        try:
            _print(spec, program, args.json)
        except FormatError as exc:
            status = 1
            place = {"section": program.program.section, "program": program.program.name}
            warn("disasm", str(exc.at(object=args.object, **place)))
    return status


def _print(spec: ObjectSpec, program: ProgramListing, as_json: bool) -> None:
    assert program.linked is not None
    starts = {start: spec.functions[number] for number, start in program.linked.functions}
    sources = {}
    for number, start in program.linked.functions:
        function = spec.functions[number]
        for row in function.lines:
            text = spec.btf.name(row.line_off).strip() if spec.btf is not None else ""
            sources[start + row.insn] = f"{text} @ {source_of(spec, function, row.insn)}"
    listed = disasm(program.insns, spec.byteorder)
    slots = [int(n) if (n := line.split(":", 1)[0].strip()).isdigit() else -1 for line in listed]
    if as_json:
        rows: list[dict[str, str]] = []
        for slot, line in zip(slots, listed, strict=True):
            rows.append({"insn": line})
            if slot in starts:
                rows[-1]["function"] = starts[slot].name
            if slot in sources:
                rows[-1]["source"] = sources[slot]
        emit({"section": program.program.section, "program": program.program.name, "insns": rows})
        return
    print(f"{program.program.section} {program.program.name}:")
    for slot, line in zip(slots, listed, strict=True):
        if slot in starts and slot:
            print(f" {starts[slot].name}:")
        if slot in sources:
            print(f"  ; {sources[slot]}")
        print(f"  {line}")
