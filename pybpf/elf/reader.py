# SPDX-License-Identifier: BSD-2-Clause
"""ELF bytes → ObjectSpec."""

from __future__ import annotations

import os
import struct

from pybpf.btf.check import check
from pybpf.btf.ext import BtfExt, has_core_relos
from pybpf.btf.model import Btf
from pybpf.elf import fixup
from pybpf.elf.btf_maps import MAPS, MapDefinition, read_maps
from pybpf.elf.data import (
    ARENA_SECTION,
    data_maps,
    kconfig_map,
    read_arena_variables,
    read_externs,
    read_variables,
)
from pybpf.elf.functions import TEXT, MapTable, read_functions, read_programs
from pybpf.elf.image import SHT_PROGBITS, STT_FUNC, ElfImage, Section
from pybpf.elf.jump_tables import JUMP_TABLES, read_jump_tables
from pybpf.elf.legacy_maps import LEGACY, read_legacy_maps
from pybpf.elf.struct_ops import is_struct_ops, read_struct_ops
from pybpf.errors import FormatError
from pybpf.record import replace
from pybpf.spec import FunctionSpec, MapSpec, ObjectSpec, VariableSpec
from pybpf.sys import abi
from pybpf.sys.files import read_file

__all__ = ["object_name", "read"]

BTF, BTF_EXT = ".BTF", ".BTF.ext"
_UNRELOCATED = (
    " Its CO-RE relocations are lost with it: programs access kernel structures as laid out in "
    "the kernel that they were compiled for."
)


def object_name(path: str) -> str:
    """The object's own name: the file's, up to its first dot, at most 15 bytes (as libbpf)."""
    return os.path.basename(path).split(".", 1)[0][:15]


def read(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> ObjectSpec:
    """Read a BPF object file.

    source: a path or the bytes; name: the object's name where there is no path to take it
    from. No system call but reading the file. Raises FormatError if the input is malformed,
    OSError if it cannot be read.

    Damaged BTF or BTF.ext is left out where the object has neither BTF maps nor struct_ops, as
    libbpf does it; ``notes["damaged"]`` of the spec then says what is lost.
    """
    path: str | None = None
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        path = os.fspath(source)
        data = read_file(path)
    label = path or name or "object"
    stem = name if name is not None else object_name(path) if path else "object"
    try:
        return _read(data, label, stem, path)
    except FormatError as exc:
        raise exc.at(object=label) from exc.__cause__


def _read(data: bytes, label: str, stem: str, path: str | None) -> ObjectSpec:
    image = ElfImage(data, name=label)
    lost: list[str] = []
    btf, ext = _read_btf(image, lost)
    return _spec(image, btf, ext, stem, path, lost)


def _spec(
    image: ElfImage,
    btf: Btf | None,
    ext: BtfExt | None,
    stem: str,
    path: str | None,
    lost: list[str],
) -> ObjectSpec:
    if btf is not None:
        btf = fixup.complete(image, btf)
    externs, btf = read_externs(image, btf)
    definitions = read_maps(image, btf)
    table = MapTable(data=data_maps(image, btf, stem))
    maps: dict[str, MapSpec] = {}
    section = image.by_name.get(MAPS)
    for definition in definitions:
        assert section is not None
        maps[definition.spec.name] = definition.spec
        table.definitions[section.number, definition.offset] = definition.spec.name
        if definition.spec.type == abi.BPF_MAP_TYPE_ARENA:
            table.arena = definition.spec.name
    legacy = image.by_name.get(LEGACY)
    for offset, spec in read_legacy_maps(image):
        assert legacy is not None
        if spec.name in maps:
            raise image.error("there are two maps of this name.", map=spec.name)
        maps[spec.name] = spec
        table.definitions[legacy.number, offset] = spec.name
    for spec in table.data.values():
        maps[spec.name] = spec
    kconfig = kconfig_map(externs, btf, stem)
    if kconfig is not None:
        maps[kconfig.name] = kconfig
    _read_arena(image, maps, table)
    jumps, jump_tables = read_jump_tables(image)
    if jumps is not None:
        table.tables = jumps.number
    functions = read_functions(image, btf, ext, table, externs)
    _read_initial(image, definitions, maps, functions)
    for spec in read_struct_ops(image, btf, functions):
        if spec.name in maps:
            raise image.error("there are two maps of this name.", map=spec.name)
        maps[spec.name] = spec
    variables = read_variables(btf, table.data)
    if table.arena is not None:
        variables.update(read_arena_variables(btf, maps[table.arena]))
    for extern in externs.values():
        if extern.kind == "kconfig" and kconfig is not None:
            variables.setdefault(
                extern.name,
                VariableSpec(extern.name, kconfig.name, extern.offset, extern.size, extern.type_id),
            )
    return ObjectSpec(
        name=stem,
        byteorder=image.byteorder,
        license=_license(image),
        kern_version=_version(image),
        maps=maps,
        functions=tuple(functions),
        programs=read_programs(functions, btf, image),
        variables=variables,
        externs=externs,
        btf=btf,
        path=path,
        notes=_notes(image, lost),
        jump_tables=jump_tables,
    )


def _read_btf(image: ElfImage, lost: list[str]) -> tuple[Btf | None, BtfExt | None]:
    """BTF and BTF.ext; where one is damaged and nothing of the object is defined by BTF, what is
    left without it (``lost`` is told)."""
    found = {name: image.by_name.get(name) for name in (BTF, BTF_EXT)}
    for name, section in found.items():
        if section is not None and section.type != SHT_PROGBITS:
            raise image.error(f"its type is {section.type}, not PROGBITS.", section=name)
    data, extra = (image.data(s) if s is not None and s.size else b"" for s in found.values())
    btf: Btf | None = None
    try:
        if data:
            parsed = Btf.parse(data, name=f"{image.name} (.BTF)", byteorder=image.byteorder)
            check(parsed)
            btf = parsed
        if not extra:
            return btf, None
        if btf is None:
            raise image.error("there is no BTF, to which it refers", section=BTF_EXT)
        return btf, BtfExt.parse(extra, btf)
    except FormatError as damage:
        damage.message = damage.message.rstrip(".") + "."
        why = _btf_needed(image)
        if why is not None:
            damage.hint = damage.hint or f"It cannot be left out: {why}."
            raise
        relocated = has_core_relos(extra, image.byteorder)
        lost.append(f"damaged and left out: {damage}" + (_UNRELOCATED if relocated else ""))
        return btf, None


def _btf_needed(image: ElfImage) -> str | None:
    """What of an object BTF defines; None where programs can be had without it."""
    if MAPS in image.by_name:
        return "it defines the maps"
    if any(map(is_struct_ops, image.sections)):
        return "it describes the struct_ops"
    return None


def _license(image: ElfImage) -> str:
    section = image.by_name.get("license")
    if section is None or section.size == 0:
        return ""
    text = image.data(section).split(b"\0", 1)[0]
    # the kernel copies at most 128 bytes, libbpf hands over 63
    return text[:127].decode("ascii", "backslashreplace")


def _version(image: ElfImage) -> int:
    section = image.by_name.get("version")
    if section is None or section.size == 0:
        return 0
    if section.size != 4:
        raise image.error(f"it has {section.size} bytes instead of 4.", section="version")
    order = "<" if image.byteorder == "little" else ">"
    (value,) = struct.unpack(order + "I", image.data(section))
    return int(value)


def _read_arena(image: ElfImage, maps: dict[str, MapSpec], table: MapTable) -> None:
    section = image.by_name.get(ARENA_SECTION)
    if section is None or section.size == 0:
        return
    if table.arena is None:
        raise image.error("there are arena variables but no arena map.", section=ARENA_SECTION)
    spec = maps[table.arena]
    maps[table.arena] = replace(spec, data=image.data(section))


def _read_initial(
    image: ElfImage,
    definitions: list[MapDefinition],
    maps: dict[str, MapSpec],
    functions: list[FunctionSpec],
) -> None:
    """Initial contents of outer maps and program arrays: relocations in their ``values``."""
    order = "<" if image.byteorder == "little" else ">"
    entries = frozenset(f.name for f in functions if f.section != TEXT)
    found: dict[str, list[tuple[bytes, str]]] = {}
    for rel_section, target in image.relocation_sections():
        if target.name != MAPS:
            continue
        for relocation in image.relocations(rel_section):
            definition = _definition_at(definitions, relocation.offset)
            if definition is None:
                raise image.error(
                    f"a relocation at byte {relocation.offset} hits no `values` of a map.",
                    section=MAPS,
                )
            spec = definition.spec
            start = definition.offset + definition.values_offset
            index, odd = divmod(relocation.offset - start, 8)
            symbol = relocation.symbol
            if spec.inner is not None:
                fits = symbol.name in maps and maps[symbol.name].section == MAPS
            else:
                fits = symbol.type == STT_FUNC and symbol.name in entries
            if odd or not fits:
                raise image.error(
                    f"`values` of map {spec.name!r} refers to {symbol.name!r}, which is no "
                    + ("program." if spec.inner is None else "map."),
                    map=spec.name,
                )
            key = struct.pack(order + "I", index)
            found.setdefault(spec.name, []).append((key, symbol.name))
    for name, initial in found.items():
        maps[name] = replace(maps[name], initial=tuple(initial))


def _definition_at(definitions: list[MapDefinition], offset: int) -> MapDefinition | None:
    for definition in definitions:
        if definition.values_offset >= 0 and (
            definition.offset + definition.values_offset
            <= offset
            < definition.offset + definition.size
        ):
            return definition
    return None


_KNOWN = ("license", "version", LEGACY, MAPS, ARENA_SECTION, JUMP_TABLES)


def _notes(image: ElfImage, lost: list[str]) -> dict[str, object]:
    """What else there is to say: a row for each section, names of those that were not used, and
    what was damaged and left out."""

    def unused(section: Section) -> bool:
        name = section.name
        return (
            section.type == 1
            and not section.executable
            and section.size > 0
            and name not in _KNOWN
            and not is_struct_ops(section)
            and not name.startswith((".BTF", ".debug", ".data", ".rodata", ".rel", ".note"))
        )

    left = {s.number for s in image.sections[1:] if unused(s)}
    counts = {target.number: rel.size // 16 for rel, target in image.relocation_sections()}
    rows = tuple(
        {
            "name": s.name,
            "type": s.type,
            "size": s.size,
            "offset": s.offset,
            "flags": s.flags,
            "relocations": counts.get(s.number, 0),
            "used": s.number not in left,
        }
        for s in image.sections[1:]
    )
    return {
        "sections": rows,
        "unused_sections": tuple(s.name for s in image.sections[1:] if s.number in left),
        "damaged": tuple(lost),
    }
