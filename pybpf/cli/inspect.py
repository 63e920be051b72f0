# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf inspect``: what an object or a Plan file holds."""

from __future__ import annotations

from pybpf.cli.common import add_target, emit, legible, plain, read_object, target_of, warn
from pybpf.compiler import needs
from pybpf.errors import PybpfError
from pybpf.plan.ops import Plan
from pybpf.spec import ObjectSpec, ProgramSpec, Ref
from pybpf.sys.abi_names import ATTACH_TYPE_NAMES, MAP_TYPE_NAMES, PROG_TYPE_NAMES
from pybpf.sys.files import read_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pybpf.compiler.needs import Need
    from pybpf.compiler.target import Target

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="OBJ|FILE", help="BPF object or Plan file")
    parser.add_argument("--json", action="store_true", help="a line of JSON")
    parser.add_argument(
        "--relocations",
        action="store_true",
        help="also tell what each relocation makes of its instruction, for the running kernel or "
        "the one of --btf",
    )
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Tell what the file holds."""
    if read_head(args.file) != b"\x7fELF":
        from pybpf.bundle import read

        return _plan(read(args.file), args)
    spec = read_object(args.file)
    found = _object(spec)
    if args.relocations:
        target = target_of(args)
        found["relocations"] = _relocations(spec, target)
    if args.json:
        emit(plain({"object": args.file, **found}))
        return 0
    _print(args.file, found)
    return 0


def _plan(plan: Plan, args: argparse.Namespace) -> int:
    from pybpf.plan import explain

    if args.json:
        emit(explain.to_json(plan))
    else:
        print(explain.to_text(plan))
    return 0


_LARGEST = 4096  # bytes of a variable whose value is told


def _value(spec: ObjectSpec, name: str) -> Any:
    if spec.variables[name].size > _LARGEST:
        return None  # a .bss may have gigabytes
    try:
        return spec.value(name)
    except PybpfError:
        return None


def _needs(found: list[Need]) -> list[dict[str, str | None]]:
    return [need._asdict() for need in found]


def _calls(asked: needs.Needs, program: ProgramSpec) -> dict[str, Any]:
    """What a program calls and needs."""
    from pybpf.sys.abi_helpers import HELPER_NAMES

    used = asked.used_by(program)
    found = asked.program(program)
    return {
        "helpers": [
            f"bpf_{HELPER_NAMES[h]}" if h < len(HELPER_NAMES) else str(h) for h in used.helpers
        ],
        "kfuncs": [{"name": name, "weak": weak} for name, weak in used.kfuncs],
        "needs": needs.least(found),
        "needs_for": _needs(found),
    }


def _least(spec: ObjectSpec, asked: needs.Needs) -> str | None:
    """The first kernel with what the programs loaded by default and their maps need."""
    found = [n for m in spec.maps.values() if m.autocreate for n in needs.map_needs(m)]
    for program in spec.programs.values():
        if program.autoload:
            found += asked.program(program)
    return needs.least(found)


def _relocations(spec: ObjectSpec, target: Target) -> list[dict[str, Any]]:
    """Every relocation of every function that a program uses, once: place and effect."""
    from pybpf.asm import disasm
    from pybpf.compiler.core import source_of
    from pybpf.compiler.listing import listing

    out: list[dict[str, Any]] = []
    seen: set[int] = set()
    for entry in listing(spec, target).programs:
        if entry.error is not None:
            out.append({"program": entry.program.name, "error": str(entry.error)})
        if entry.linked is None:
            continue
        for number, start in entry.linked.functions:
            if number in seen:
                continue
            seen.add(number)
            function = spec.functions[number]
            effects: dict[int, dict[str, Any]] = {}
            for outcome in entry.outcomes.get(number, ()):
                effects[outcome.insn] = {
                    "kind": outcome.kind_name,
                    "of": outcome.local.expression(),
                    "decision": outcome.text().partition(": ")[2],
                    "poisoned": outcome.poisoned is not None,
                }
            for ref in function.refs:
                effects.setdefault(ref.insn, {"kind": ref.kind, "of": _target_of(ref)})
            for slot in sorted(effects):
                wide = function.insns[8 * slot] == 0x18
                before = function.insns[8 * slot : 8 * slot + (16 if wide else 8)]
                at = 8 * (start + slot)
                after = entry.insns[at : at + len(before)]
                out.append(
                    {
                        "function": function.name,
                        "insn": slot,
                        "source": source_of(spec, function, slot),
                        **effects[slot],
                        "before": _text(disasm(before, spec.byteorder)),
                        "after": _text(disasm(after, spec.byteorder)) if after else None,
                    }
                )
    return out


def _text(lines: list[str]) -> str:
    return " ".join(line.partition(": ")[2] or line for line in lines)


def _target_of(ref: Ref) -> str:
    if ref.kind == "data":
        return f"{ref.name}+{ref.offset}"
    return ref.name or f".jumptables+{ref.offset}"


def _object(spec: ObjectSpec) -> dict[str, Any]:
    asked = needs.Needs(spec)
    return {
        "name": spec.name,
        "needs": _least(spec, asked),
        "byteorder": spec.byteorder,
        "license": spec.license,
        "btf_types": spec.btf.count if spec.btf is not None else 0,
        "maps": [
            {
                "name": m.name,
                "kernel_name": m.kernel_name or m.name,
                "type": MAP_TYPE_NAMES.get(m.type, str(m.type)),
                "key_size": m.key_size,
                "value_size": m.value_size,
                "max_entries": m.max_entries,
                "flags": m.flags,
                "extra": m.extra,
                "frozen": m.frozen,
                "pinned": bool(m.pin or m.pin_path),
                "needs": needs.least(needs.map_needs(m)),
                "needs_for": _needs(needs.map_needs(m)),
            }
            for m in spec.maps.values()
        ],
        "programs": [
            {
                "name": p.name,
                "section": p.section,
                "type": PROG_TYPE_NAMES.get(p.type, str(p.type)),
                "attach_type": ATTACH_TYPE_NAMES.get(p.expected_attach_type)
                if p.expected_attach_type
                else None,
                "attach_to": p.attach_to,
                "flags": p.flags,
                "autoload": p.autoload,
                "instructions": len(spec.functions[p.function].insns) // 8,
                **_calls(asked, p),
            }
            for p in spec.programs.values()
        ],
        "functions": [
            {
                "name": f.name,
                "section": f.section,
                "instructions": len(f.insns) // 8,
                "global": f.global_,
                "references": len(f.refs),
                "core_relocations": len(f.core),
                "lines": len(f.lines),
            }
            for f in spec.functions
        ],
        "variables": [
            {
                "name": v.name,
                "map": v.map,
                "offset": v.offset,
                "size": v.size,
                "value": _value(spec, v.name),
            }
            for v in spec.variables.values()
        ],
        "sections": [dict(row) for row in spec.notes.get("sections", ())],
        "externs": [
            {"name": e.name, "kind": e.kind, "weak": e.weak} for e in spec.externs.values()
        ],
        "unused_sections": list(spec.notes.get("unused_sections", ())),
        "damaged": list(spec.notes.get("damaged", ())),
    }


def _print(path: str, found: dict[str, Any]) -> None:
    print(
        f"{path}: {found['byteorder']}-endian, licence {found['license'] or 'none'}, "
        f"{found['btf_types']} BTF types"
        + (f"; Linux {found['needs']} or newer" if found["needs"] else "")
    )
    for section in found["sections"]:
        print(
            f"section {section['name']}: {section['size']} bytes at {section['offset']}"
            + (f", {section['relocations']} relocations" if section["relocations"] else "")
            + ("" if section["used"] else ", not used")
        )
    for spec in found["maps"]:
        print(
            f"map {spec['name']}: {spec['type']}, key {spec['key_size']}, value "
            f"{spec['value_size']}, entries {spec['max_entries']}, flags {spec['flags']:#x}"
            + (", frozen" if spec["frozen"] else "")
            + (", pinned" if spec["pinned"] else "")
            + (f"; Linux {spec['needs']}" if spec["needs"] else "")
        )
    for program in found["programs"]:
        print(
            f"program {program['name']}: {program['section']} ({program['type']}"
            + (f", {program['attach_type']}" if program["attach_type"] else "")
            + f"), {program['instructions']} instructions"
            + ("" if program["autoload"] else ", not loaded by default")
            + (f"; Linux {program['needs']}" if program["needs"] else "")
        )
        if program["helpers"]:
            print(f"  helpers: {', '.join(program['helpers'])}")
        if program["kfuncs"]:
            texts = (k["name"] + (" (weak)" if k["weak"] else "") for k in program["kfuncs"])
            print(f"  kfuncs: {', '.join(texts)}")
        latest = [n["what"] for n in program["needs_for"] if n["version"] == program["needs"]]
        if latest:
            print(f"  Linux {program['needs']} for: {', '.join(latest)}")
    for function in found["functions"]:
        if function["section"] == ".text":
            print(f"subprogram {function['name']}: {function['instructions']} instructions")
    for variable in found["variables"]:
        print(
            f"variable {variable['name']}: {variable['map']}+{variable['offset']}, "
            f"{variable['size']} bytes"
            + (", not shown" if variable["value"] is None else f", {legible(variable['value'])}")
        )
    for extern in found["externs"]:
        print(f"extern {extern['name']}: {extern['kind']}{', weak' if extern['weak'] else ''}")
    for row in found.get("relocations", ()):
        if "error" in row:
            warn("inspect", row["error"])
            continue
        where = f" ({row['source']})" if row["source"] else ""
        print(f"relocation {row['function']}+{row['insn']}{where}: {row['kind']} {row['of']}")
        if "decision" in row:
            print(f"  {row['decision']}")
        print(f"  {row['before']}  ->  {row['after'] or 'not relocated'}")
