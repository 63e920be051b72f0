# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf prog|map|link|btf``: what is in the kernel, and ``btf dump`` of any BTF file."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pybpf.asm.consts import (
    CALL,
    LDIMM64,
    PSEUDO_KFUNC_CALL,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_VALUE,
)
from pybpf.asm.disasm import Namer, disasm
from pybpf.asm.insn import Instruction
from pybpf.btf.cdecl import vmlinux_h
from pybpf.btf.consts import (
    KIND_ARRAY,
    KIND_FUNC,
    KIND_VAR,
)
from pybpf.btf.dedup import dedup
from pybpf.btf.model import SYSFS, Btf
from pybpf.btf.typed import typed
from pybpf.btf.types import SIZED
from pybpf.cli.common import emit, legible, plain
from pybpf.errors import FormatError, KernelError, PybpfError, UsageError
from pybpf.kernel.btf import BtfObject
from pybpf.kernel.kallsyms import addresses
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.kernel.object import KernelObject, iterate_ids
from pybpf.kernel.program import Program
from pybpf.sys import abi
from pybpf.sys.abi_names import LINK_TYPE_NAMES, MAP_TYPE_NAMES, PROG_TYPE_NAMES
from pybpf.sys.files import read_head

__all__ = ["add_btf", "add_link", "add_map", "add_prog", "run"]

_KINDS: dict[str, tuple[type[KernelObject], int, dict[int, str]]] = {
    "prog": (Program, abi.BPF_PROG_GET_NEXT_ID, PROG_TYPE_NAMES),
    "map": (Map, abi.BPF_MAP_GET_NEXT_ID, MAP_TYPE_NAMES),
    "link": (Link, abi.BPF_LINK_GET_NEXT_ID, LINK_TYPE_NAMES),
    "btf": (BtfObject, abi.BPF_BTF_GET_NEXT_ID, {}),
}
LINKAGES = ("static", "global", "extern")
_WHICH = "ID|NAME|PATH"
_WHICH_HELP = "its id, its name, or where it is pinned (a path with a slash)"


def _declare(parser: argparse.ArgumentParser, kind: str, dump: str | None) -> Any:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    found = actions.add_parser("list", help="all of them, a line each")
    found.add_argument("--json", action="store_true", help="a line of JSON each")
    found = actions.add_parser("show", help="one of them")
    found.add_argument("which", metavar=_WHICH, help=_WHICH_HELP)
    found.add_argument("--json", action="store_true", help="a line of JSON")
    if dump is not None:
        found = actions.add_parser("dump", help=dump)
        found.add_argument("which", metavar=_WHICH, help=_WHICH_HELP)
        found.add_argument("--json", action="store_true", help="JSON lines")
    parser.set_defaults(kind=kind)
    return actions


def add_prog(parser: argparse.ArgumentParser) -> None:
    """Options of ``prog``."""
    _declare(parser, "prog", "its instructions, as the kernel rewrote them")


def add_map(parser: argparse.ArgumentParser) -> None:
    """Options of ``map``."""
    _declare(parser, "map", "its elements, decoded by its BTF")


def add_link(parser: argparse.ArgumentParser) -> None:
    """Options of ``link``."""
    _declare(parser, "link", None)


def add_btf(parser: argparse.ArgumentParser) -> None:
    """Options of ``btf``."""
    actions = _declare(parser, "btf", None)
    found = actions.add_parser("dump", help="types, of the kernel, a module, an id or a file")
    found.add_argument(
        "which", metavar="vmlinux|MODULE|ID|FILE", help="raw BTF file, object file, or kernel BTF"
    )
    found.add_argument(
        "--format", choices=("raw", "c"), default="raw",
        help="raw (default), or C: a header for BPF programs, as bpftool's vmlinux.h",
    )  # fmt: skip
    found.add_argument("--json", action="store_true", help="a line of JSON each")
    found.add_argument("--base", metavar="FILE", help="base of split BTF")
    found.add_argument("--type", metavar="NAME", help="only types of this name, and what they need")
    found = actions.add_parser("merge", help="the types of several, each of them once")
    found.add_argument("files", metavar="vmlinux|ID|FILE", nargs="+", help="as for dump")
    found.add_argument("-o", "--output", metavar="FILE", required=True, help="raw BTF to write")
    found = actions.add_parser(
        "minimal", help="of a kernel's types, what relocating these objects needs"
    )
    found.add_argument("files", metavar="OBJ", nargs="+", help="BPF object file")
    found.add_argument("-o", "--output", metavar="FILE", required=True, help="raw BTF to write")
    found.add_argument(
        "--btf", metavar="FILE", help="raw vmlinux BTF of the kernel (default: the running one)"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "dump": _dump_btf if args.kind == "btf" else _dump,
        "merge": _merge,
        "minimal": _minimal,
    }
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    cls, command, _ = _KINDS[args.kind]
    for found in _all(cls, command):
        with found:
            _tell(args, found)
    return 0


def _all(cls: type[KernelObject], command: int) -> Iterator[KernelObject]:
    """Every object of a kind; whoever takes one closes it."""
    for ident in iterate_ids(command):
        try:
            yield cls.from_id(ident)
        except KernelError as exc:
            if exc.errno != 2:  # ENOENT: gone meanwhile
                raise


def _open(args: argparse.Namespace) -> Any:
    """The object meant; UsageError where a name is that of none or of several."""
    cls, command, _ = _KINDS[args.kind]
    if args.which.isdecimal():
        return cls.from_id(int(args.which))
    if "/" in args.which:
        return cls.from_pin(args.which)
    ids = []
    for found in _all(cls, command):
        with found:
            info = found.info()
            if info.get("name") == args.which:
                ids.append(info["id"])
    if not ids:
        raise UsageError(f"no {args.kind} of the name {args.which!r} is in the kernel.")
    if len(ids) > 1:
        raise UsageError(
            f"{len(ids)} of the name {args.which!r} are in the kernel: "
            f"{', '.join(map(str, ids[:10]))}{' …' if len(ids) > 10 else ''}.",
            hint="Give one of the ids.",
        )
    return cls.from_id(ids[0])


def _show(args: argparse.Namespace) -> int:
    with _open(args) as found:
        _tell(args, found)
    return 0


def _tell(args: argparse.Namespace, found: KernelObject) -> None:
    info = {k: plain(v) for k, v in found.info().items()}
    names = _KINDS[args.kind][2]
    if "type" in info:
        info["type"] = names.get(info["type"], info["type"])
    if isinstance(found, Program):
        info["map_ids"] = found.map_ids()
    if args.json:
        emit(info)
        return
    head = [str(info.pop("id", "?")), str(info.pop("type", "")), str(info.pop("name", ""))]
    rest = " ".join(f"{k} {v}" for k, v in info.items() if v not in (0, "", None, [], False))
    print(" ".join(part for part in head if part), rest, sep="  ")


def _dump(args: argparse.Namespace) -> int:
    with _open(args) as found:
        try:
            if isinstance(found, Program):
                _dump_program(args, found)
            else:
                assert isinstance(found, Map)
                _dump_map(args, found)
        except PybpfError as exc:
            raise exc.at(**{found.KIND: args.which}) from None
    return 0


def _dump_program(args: argparse.Namespace, found: Program) -> None:
    lines = disasm(found.xlated(), sys.byteorder, name=_namer())
    if not lines:
        raise UsageError(
            "the kernel does not show its instructions.",
            hint="It needs CAP_PERFMON, CAP_SYS_ADMIN and kernel.kptr_restrict below 2.",
        )
    for line in lines:
        if args.json:
            emit({"insn": line})
        else:
            print(line)


def _dump_map(args: argparse.Namespace, found: Map) -> None:
    for key, value in typed(found).items():
        if args.json:
            emit({"key": plain(key), "value": plain(value)})
        else:
            print(f"{_text(key)}: {_text(value)}")


def _text(value: Any) -> str:
    return str(legible(value))


def _namer() -> Namer:
    """Names for what instructions refer to as the kernel shows them: maps by their id, helpers
    and kernel functions by the distance of their address from __bpf_call_base."""

    @functools.cache
    def symbols() -> tuple[int, dict[int, str]]:
        base = 0
        found: dict[int, str] = {}
        for address, name in addresses():
            found.setdefault(address, name)
            if name == "__bpf_call_base":
                base = address
        return base, found

    def called(distance: int) -> str | None:
        base, found = symbols()
        return found.get(base + distance) if base else None

    def name(ins: Instruction) -> str | None:
        if ins.opcode == LDIMM64 and ins.src in (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE):
            return f"id:{ins.imm & 0xFFFFFFFF}"
        if ins.opcode == CALL and ins.src in (0, PSEUDO_KFUNC_CALL):
            return called(ins.imm)
        return None

    return name


def _dump_btf(args: argparse.Namespace) -> int:
    btf = _find_btf(args.which, args.base)
    wanted = None
    if args.type is not None:
        wanted = btf.find(args.type)
        if not wanted:
            raise UsageError(f"there is no type {args.type!r} in {args.which}.")
    if args.format == "c":
        if args.json:
            raise UsageError("C is text: --format c and --json do not go together.")
        sys.stdout.write(vmlinux_h(btf, wanted))
        return 0
    for type_id in wanted if wanted is not None else range(btf.start_id, btf.count):
        if args.json:
            emit(_type_as_json(btf, type_id))
            continue
        for line in _raw(btf, type_id):
            print(line)
    return 0


def _type_as_json(btf: Btf, type_id: int) -> dict[str, Any]:
    """A type by its parts; those that its kind does not have are left out."""
    found = btf.type(type_id)
    out: dict[str, Any] = {"id": type_id, "kind": found.kind_name, "name": found.name}
    if found.kind in SIZED:
        out["size"] = found.size_or_type
    elif found.kind == KIND_ARRAY:
        out |= found.array._asdict()
    else:
        out["type"] = found.size_or_type
    if found.kind in (KIND_FUNC, KIND_VAR):
        out["linkage"] = LINKAGES[min(found.linkage, 2)]
    for name, parts in (
        ("members", [{"name": m.name, **m._asdict()} for m in found.members]),
        ("values", [{"name": v.name, "value": v.value} for v in found.enumerators]),
        ("params", [{"name": p.name, **p._asdict()} for p in found.params]),
        ("variables", [v._asdict() for v in found.variables]),
    ):
        if parts:
            out[name] = parts
    return out


def _merge(args: argparse.Namespace) -> int:
    data, _ = dedup([_find_btf(which) for which in args.files])
    with open(args.output, "wb") as file:
        file.write(data)
    return 0


def _minimal(args: argparse.Namespace) -> int:
    from pybpf.cli.common import read_object
    from pybpf.compiler import Target
    from pybpf.compiler.listing import listing
    from pybpf.reloc.core_minimal import minimal

    btf = Btf.open(args.btf) if args.btf else Btf.vmlinux()
    target = Target(btf=btf)
    outcomes = []
    for path in args.files:
        for program in listing(read_object(path), target).programs:
            if program.error is not None:
                raise program.error
            for told in program.outcomes.values():
                outcomes += told
    with open(args.output, "wb") as file:
        file.write(minimal(btf, outcomes))
    return 0


def _find_btf(which: str, base_file: str | None = None) -> Btf:
    if which == "vmlinux":
        return Btf.vmlinux()
    if which.isdecimal():
        with BtfObject.from_id(int(which)) as kept:
            info = kept.info()
            base = Btf.vmlinux() if info["kernel_btf"] and info["name"] != "vmlinux" else None
            return Btf.parse(kept.data(), base=base, name=info["name"] or which)
    if "/" not in which and not os.path.exists(which) and os.path.exists(f"{SYSFS}/{which}"):
        return Btf.module(which, Btf.vmlinux())
    if "/" not in which and not os.path.exists(which):
        raise UsageError(
            f"there is neither a file {which!r} nor a loaded module of this name with BTF."
        )
    if read_head(which) == b"\x7fELF":
        from pybpf.elf.reader import read

        found = read(which).btf
        if found is None:
            raise FormatError("the object has no BTF.", object=which)
        return found
    base = Btf.open(base_file) if base_file else None
    return Btf.open(which, base=base)


def _raw(btf: Btf, type_id: int) -> Iterator[str]:
    """A type in the manner of ``bpftool btf dump``."""
    found = btf.type(type_id)
    line = f"[{type_id}] {found.kind_name.upper()} '{found.name or '(anon)'}'"
    if found.kind in SIZED:
        line += f" size={found.size_or_type}"
    elif found.kind == KIND_ARRAY:
        line += f" type_id={found.array.type} nr_elems={found.array.nelems}"
    else:
        line += f" type_id={found.size_or_type}"
    if found.kind in (KIND_FUNC, KIND_VAR):
        line += f" linkage={LINKAGES[min(found.linkage, 2)]}"
    if found.vlen and found.kind != KIND_FUNC:
        line += f" vlen={found.vlen}"
    yield line
    for member in found.members:
        bits = f" bitfield_size={member.bit_size}" if member.bit_size else ""
        yield f"\t'{member.name or '(anon)'}' type_id={member.type} " + (
            f"bits_offset={member.bit_offset}{bits}"
        )
    for value in found.enumerators:
        yield f"\t'{value.name}' val={value.value}"
    for param in found.params:
        yield f"\t'{param.name or '(anon)'}' type_id={param.type}"
    for var in found.variables:
        yield f"\ttype_id={var.type} offset={var.offset} size={var.size}"
