# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf inspect``: what an object or a Plan file holds."""

from __future__ import annotations

from pybpf.cli.common import emit, plain, read_object
from pybpf.errors import PybpfError
from pybpf.plan.ops import Plan
from pybpf.spec import ObjectSpec
from pybpf.sys.abi_names import ATTACH_TYPE_NAMES, MAP_TYPE_NAMES, PROG_TYPE_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="OBJ|FILE", help="BPF object or Plan file")
    parser.add_argument("--json", action="store_true", help="a line of JSON")


def run(args: argparse.Namespace) -> int:
    """Tell what the file holds."""
    with open(args.file, "rb") as file:
        head = file.read(4)
        if head != b"\x7fELF":
            from pybpf.plan.frozen import from_bytes

            try:
                plan = from_bytes(head + file.read())
            except PybpfError as exc:
                raise exc.at(file=args.file) from exc.__cause__
            return _plan(plan, args)
    found = _object(read_object(args.file))
    if args.json:
        emit({"object": args.file, **found})
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


def _value(spec: ObjectSpec, name: str) -> Any:
    try:
        value = spec.value(name)
    except PybpfError:
        return None
    return plain(value)


def _object(spec: ObjectSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
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
        "externs": [
            {"name": e.name, "kind": e.kind, "weak": e.weak} for e in spec.externs.values()
        ],
        **{k: list(v) if isinstance(v, tuple) else v for k, v in spec.notes.items()},
    }


def _print(path: str, found: dict[str, Any]) -> None:
    print(
        f"{path}: {found['byteorder']}-endian, licence {found['license'] or 'none'}, "
        f"{found['btf_types']} BTF types"
    )
    for spec in found["maps"]:
        print(
            f"map {spec['name']}: {spec['type']}, key {spec['key_size']}, value "
            f"{spec['value_size']}, entries {spec['max_entries']}, flags {spec['flags']:#x}"
            + (", frozen" if spec["frozen"] else "")
            + (", pinned" if spec["pinned"] else "")
        )
    for program in found["programs"]:
        print(
            f"program {program['name']}: {program['section']} ({program['type']}"
            + (f", {program['attach_type']}" if program["attach_type"] else "")
            + f"), {program['instructions']} instructions"
            + ("" if program["autoload"] else ", not loaded by default")
        )
    for function in found["functions"]:
        if function["section"] == ".text":
            print(f"subprogram {function['name']}: {function['instructions']} instructions")
    for variable in found["variables"]:
        print(
            f"variable {variable['name']}: {variable['map']}+{variable['offset']}, "
            f"{variable['size']} bytes, {variable['value']}"
        )
    for extern in found["externs"]:
        print(f"extern {extern['name']}: {extern['kind']}{', weak' if extern['weak'] else ''}")
