# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf prog|map|link|btf``: what is in the kernel, and ``btf dump`` of any BTF file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pybpf.asm.disasm import disasm
from pybpf.btf.cdecl import dump as c_header
from pybpf.btf.layout import layout
from pybpf.btf.model import Btf
from pybpf.cli.common import emit, plain
from pybpf.errors import FormatError, KernelError, UsageError
from pybpf.kernel.btf import BtfObject
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.kernel.object import KernelObject, iterate_ids
from pybpf.kernel.program import Program
from pybpf.sys import abi
from pybpf.sys.abi_names import LINK_TYPE_NAMES, MAP_TYPE_NAMES, PROG_TYPE_NAMES

__all__ = ["add_btf", "add_link", "add_map", "add_prog", "run"]

_KINDS: dict[str, tuple[type[KernelObject], int, dict[int, str]]] = {
    "prog": (Program, abi.BPF_PROG_GET_NEXT_ID, PROG_TYPE_NAMES),
    "map": (Map, abi.BPF_MAP_GET_NEXT_ID, MAP_TYPE_NAMES),
    "link": (Link, abi.BPF_LINK_GET_NEXT_ID, LINK_TYPE_NAMES),
    "btf": (BtfObject, abi.BPF_BTF_GET_NEXT_ID, {}),
}
SYSFS = "/sys/kernel/btf"


def _declare(parser: argparse.ArgumentParser, kind: str, dump: str | None) -> Any:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    found = actions.add_parser("list", help="all of them, a line each")
    found.add_argument("--json", action="store_true", help="a line of JSON each")
    found = actions.add_parser("show", help="one of them")
    found.add_argument("which", metavar="ID|PATH", help="its id, or where it is pinned")
    found.add_argument("--json", action="store_true", help="a line of JSON")
    if dump is not None:
        found = actions.add_parser("dump", help=dump)
        found.add_argument("which", metavar="ID|PATH", help="its id, or where it is pinned")
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
    found.add_argument("--format", choices=("raw", "c"), default="raw", help="raw (default) or C")
    found.add_argument("--base", metavar="FILE", help="base of split BTF")
    found.add_argument("--type", metavar="NAME", help="only types of this name, and what they need")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "dump": _dump_btf if args.kind == "btf" else _dump,
    }
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    cls, command, _ = _KINDS[args.kind]
    for ident in iterate_ids(command):
        try:
            found = cls.from_id(ident)
        except KernelError as exc:
            if exc.errno == 2:  # ENOENT: gone meanwhile
                continue
            raise
        with found:
            _tell(args, found)
    return 0


def _open(args: argparse.Namespace) -> Any:
    cls = _KINDS[args.kind][0]
    if args.which.isdigit():
        return cls.from_id(int(args.which))
    return cls.from_pin(args.which)


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
        if isinstance(found, Program):
            lines = disasm(found.xlated(), sys.byteorder)
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
            return 0
        assert isinstance(found, Map)
        _type_map(found)
        for key, value in found.items():
            if args.json:
                emit({"key": plain(key), "value": plain(value)})
            else:
                print(f"{_text(key)}: {_text(value)}")
    return 0


def _text(value: Any) -> str:
    return str(plain(value))


def _type_map(found: Map) -> None:
    """Give the map the layouts that its BTF describes."""
    info = found.info()
    if not info.get("btf_id"):
        return
    with BtfObject.from_id(info["btf_id"]) as kept:
        btf = Btf.parse(kept.data(), name=f"BTF {info['btf_id']}")
    for field, size, name in (
        ("btf_key_type_id", found.key_size, "key_layout"),
        ("btf_value_type_id", found.value_size, "value_layout"),
    ):
        try:
            if info.get(field) and btf.size(info[field]) == size:
                setattr(found, name, layout(btf, info[field]))
        except FormatError:
            continue


def _dump_btf(args: argparse.Namespace) -> int:
    btf = _find_btf(args)
    wanted = None
    if args.type is not None:
        wanted = btf.find(args.type)
        if not wanted:
            raise UsageError(f"there is no type {args.type!r} in {args.which}.")
    if args.format == "c":
        sys.stdout.write(c_header(btf, wanted))
        return 0
    for type_id in wanted if wanted is not None else range(btf.start_id, btf.count):
        for line in _raw(btf, type_id):
            print(line)
    return 0


def _find_btf(args: argparse.Namespace) -> Btf:
    which = args.which
    if which == "vmlinux":
        return Btf.vmlinux()
    if which.isdigit():
        with BtfObject.from_id(int(which)) as kept:
            info = kept.info()
            base = Btf.vmlinux() if info["kernel_btf"] and info["name"] != "vmlinux" else None
            return Btf.parse(kept.data(), base=base, name=info["name"] or which)
    if "/" not in which and not os.path.exists(which) and os.path.exists(f"{SYSFS}/{which}"):
        return Btf.module(which, Btf.vmlinux())
    with open(which, "rb") as file:
        head = file.read(4)
    if head == b"\x7fELF":
        from pybpf.elf.reader import read

        found = read(which).btf
        if found is None:
            raise FormatError("the object has no BTF.", object=which)
        return found
    base = Btf.open(args.base) if args.base else None
    return Btf.open(which, base=base)


def _raw(btf: Btf, type_id: int) -> Iterator[str]:
    """A type in the manner of ``bpftool btf dump``."""
    found = btf.type(type_id)
    line = f"[{type_id}] {found.kind_name.upper()} '{found.name or '(anon)'}'"
    if found.kind in (1, 4, 5, 6, 15, 16, 19):
        line += f" size={found.size_or_type}"
    elif found.kind == 3:
        line += f" type_id={found.array.type} nr_elems={found.array.nelems}"
    else:
        line += f" type_id={found.size_or_type}"
    if found.kind in (12, 14):
        line += f" linkage={('static', 'global', 'extern')[min(found.linkage, 2)]}"
    if found.vlen and found.kind != 12:
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
