# SPDX-License-Identifier: BSD-2-Clause
"""struct_ops: variables of kernel structs whose function pointers are BPF programs.

Each variable of ".struct_ops" or ".struct_ops.link" becomes a map; "?" before the section's
name means that it is not created unless asked for.
"""

from __future__ import annotations

from pybpf.btf.consts import KIND_DATASEC, KIND_STRUCT
from pybpf.btf.model import Btf, Type
from pybpf.elf.image import ElfImage, Section
from pybpf.spec import FunctionSpec, MapSpec
from pybpf.sys import abi

__all__ = ["is_struct_ops", "read_struct_ops"]

_NAMES = (".struct_ops", ".struct_ops.link")


def is_struct_ops(section: Section) -> bool:
    """Whether the section holds struct_ops variables."""
    return section.name.removeprefix("?") in _NAMES and section.size > 0


def read_struct_ops(
    image: ElfImage, btf: Btf | None, functions: list[FunctionSpec]
) -> list[MapSpec]:
    """The maps of all struct_ops sections. Raises FormatError."""
    out = []
    for section in image.sections[1:]:
        if not is_struct_ops(section):
            continue
        ids = btf.find(section.name, KIND_DATASEC) if btf is not None else []
        if btf is None or not ids:
            raise image.error("there is no BTF for it.", section=section.name)
        programs = _programs(image, section, functions)
        for entry in btf.type(ids[0]).variables:
            var = btf.type(entry.type)
            found = btf.skip(var.type)
            if found.kind != KIND_STRUCT or not found.name:
                raise image.error(
                    "it is no variable of a named struct.", section=section.name, map=var.name
                )
            if entry.offset + found.size_or_type > section.size:
                raise image.error("it lies outside its section.", map=var.name)
            data = image.data(section)[entry.offset : entry.offset + found.size_or_type]
            link = section.name.endswith(".link")
            out.append(
                MapSpec(
                    name=var.name,
                    type=abi.BPF_MAP_TYPE_STRUCT_OPS,
                    key_size=4,
                    value_size=found.size_or_type,
                    max_entries=1,
                    flags=abi.BPF_F_LINK if link else 0,
                    value_type_id=found.id,
                    data=data,
                    section=section.name,
                    autocreate=not section.name.startswith("?"),
                    struct_ops=True,
                    members=_members(image, btf, found, entry.offset, programs, var.name),
                )
            )
    return out


def _programs(image: ElfImage, section: Section, functions: list[FunctionSpec]) -> dict[int, str]:
    """Byte offset in the section → the program whose address belongs there."""
    places = {(f.section, f.offset): f.name for f in functions if f.section != ".text"}
    out = {}
    for rel_section, target in image.relocation_sections():
        if target.number != section.number:
            continue
        for relocation in image.relocations(rel_section):
            symbol = relocation.symbol
            where = (
                image.sections[symbol.section].name
                if 0 < symbol.section < len(image.sections)
                else ""
            )
            name = places.get((where, symbol.value))
            if name is None:
                raise image.error(
                    f"byte {relocation.offset} refers to {symbol.name!r}, which is no program.",
                    section=section.name,
                )
            out[relocation.offset] = name
    return out


def _members(
    image: ElfImage, btf: Btf, found: Type, start: int, programs: dict[int, str], name: str
) -> tuple[tuple[str, str], ...]:
    """(member, program) of the function pointers that are set."""
    out = []
    for member in found.members:
        program = programs.get(start + member.bit_offset // 8)
        if program is not None:
            if not member.name:
                raise image.error("a program is put into a member without a name.", map=name)
            out.append((member.name, program))
    return tuple(out)
