# SPDX-License-Identifier: BSD-2-Clause
"""Data sections as maps, global variables, and externs.

.data, .rodata, .bss and their custom forms (".data.x", ".rodata.x", ".bss.x") each become an
array map of one element, .percpu and ".percpu.x" a per-CPU one (libbpf 1.8). What the object only
declares (``__kconfig``, ``__ksym``) becomes an ExternSpec; kconfig values get a map of their own.
"""

from __future__ import annotations

from pybpf.btf.consts import (
    KIND_ARRAY,
    KIND_DATASEC,
    KIND_FUNC,
    KIND_VAR,
)
from pybpf.btf.model import Btf, SecVar, Type
from pybpf.elf.fixup import KCONFIG, KSYMS, LINKAGE_EXTERN, LINKAGE_STATIC, Editor
from pybpf.elf.image import SHT_NOBITS, SHT_PROGBITS, STB_WEAK, ElfImage, Section
from pybpf.spec import ExternSpec, MapSpec, VariableSpec
from pybpf.sys import abi

__all__ = [
    "ARENA_SECTION",
    "data_maps",
    "is_data",
    "kconfig_map",
    "kernel_name",
    "read_arena_variables",
    "read_externs",
    "read_variables",
    "writable",
]

ARENA_SECTION = ".addr_space.1"
PERCPU = ".percpu"
_MAX_ARRAYS = 32  # dimensions: as deep as libbpf resolves
_MAX_KCONFIG = 1 << 20  # bytes; a value is a number, or text of a few hundred characters
_NAME_LEN = 16  # BPF_OBJ_NAME_LEN, its NUL included


def _in_family(name: str, family: str) -> bool:
    return name == family or name.startswith(family + ".")


def writable(name: str) -> bool:
    """Whether a data section of this name may be written by programs (all but .rodata)."""
    return not _in_family(name, ".rodata") and name != KCONFIG


def is_data(section: Section) -> bool:
    """Whether the section becomes a data map."""
    if section.size == 0:
        return False
    if section.type == SHT_PROGBITS and not section.executable:
        return any(_in_family(section.name, family) for family in (".data", ".rodata", PERCPU))
    return section.type == SHT_NOBITS and _in_family(section.name, ".bss")


def kernel_name(stem: str, section: str) -> str:
    """The name the kernel sees: as much of the object's name as fits, and the section.

    At most 15 bytes; a custom section (".data.x") stands alone. libbpf's rule, so that tools
    that look maps up by name find them; it cuts the name of a long ".bss.x" and tells those of
    other custom sections whole.
    """
    if "." in section[1:] or section == PERCPU:
        if not _in_family(section, ".bss"):
            return section
        stem = ""
    room = max(_NAME_LEN - max(7, len(section)) - 1, 0)
    text = (stem[:room] + section)[: _NAME_LEN - 1]
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_." else "_" for c in text)


def _exposed(btf: Btf | None, datasec: Type | None) -> bool:
    """Whether a DATASEC has a variable visible outside: then user space may want to map it."""
    return (
        btf is not None
        and datasec is not None
        and any(btf.type(v.type).linkage != LINKAGE_STATIC for v in datasec.variables)
    )


def _datasec(btf: Btf | None, name: str) -> Type | None:
    ids = btf.find(name, KIND_DATASEC) if btf is not None else []
    return btf.type(ids[0]) if btf is not None and ids else None


def _data_map(
    stem: str, name: str, btf: Btf | None, *, size: int, data: bytes, frozen: bool
) -> MapSpec:
    datasec = _datasec(btf, name)
    flags = 0 if writable(name) else abi.BPF_F_RDONLY_PROG
    percpu = _in_family(name, PERCPU)
    if _exposed(btf, datasec) and not percpu:  # the kernel maps no per-CPU map into memory
        flags |= abi.BPF_F_MMAPABLE
    return MapSpec(
        name=name,
        kernel_name=kernel_name(stem, name),
        type=abi.BPF_MAP_TYPE_PERCPU_ARRAY if percpu else abi.BPF_MAP_TYPE_ARRAY,
        key_size=4,
        value_size=size,
        max_entries=1,
        flags=flags,
        value_type_id=datasec.id if datasec is not None else 0,
        data=data,
        frozen=frozen,
        section=name,
    )


def data_maps(image: ElfImage, btf: Btf | None, stem: str) -> dict[int, MapSpec]:
    """Section index → its data map, in the order of the file."""
    out: dict[int, MapSpec] = {}
    taken: set[str] = set()
    for section in image.sections[1:]:
        if not is_data(section):
            continue
        if section.name in taken:
            raise image.error("there are two data sections of this name.", section=section.name)
        taken.add(section.name)
        out[section.number] = _data_map(
            stem,
            section.name,
            btf,
            size=section.size,
            # The zeroes of a .bss, which may be said to be very large, are not written out.
            data=b"" if section.type == SHT_NOBITS else image.data(section),
            frozen=not writable(section.name),
        )
    return out


def read_variables(btf: Btf | None, maps: dict[int, MapSpec]) -> dict[str, VariableSpec]:
    """Global variables of the data maps, by name. Static ones are included."""
    out: dict[str, VariableSpec] = {}
    for spec in maps.values():
        datasec = _datasec(btf, spec.section)
        if btf is None or datasec is None:
            continue
        for entry in datasec.variables:
            var = btf.type(entry.type)
            if not var.name or entry.offset + entry.size > spec.value_size:
                continue
            out.setdefault(
                var.name,
                VariableSpec(var.name, spec.name, entry.offset, entry.size, var.type),
            )
    return out


def read_arena_variables(btf: Btf | None, arena: MapSpec) -> dict[str, VariableSpec]:
    """Variables of an arena; offsets count from the start of its initial data."""
    datasec = _datasec(btf, ARENA_SECTION)
    out: dict[str, VariableSpec] = {}
    if btf is None or datasec is None or arena.data is None:
        return out
    for entry in datasec.variables:
        var = btf.type(entry.type)
        if var.name and entry.offset + entry.size <= len(arena.data):
            out[var.name] = VariableSpec(
                var.name, arena.name, entry.offset, entry.size, var.type
            )
    return out


def _align(btf: Btf, type_id: int) -> int:
    """Alignment of a scalar or of an array's element: its size, at most 8."""
    found = btf.skip(type_id)
    for _ in range(_MAX_ARRAYS):
        if found.kind != KIND_ARRAY:
            break
        found = btf.skip(found.array.type)
    return max(1, min(btf.size(found.id), 8))


def read_externs(image: ElfImage, btf: Btf | None) -> tuple[dict[str, ExternSpec], Btf | None]:
    """The undefined symbols as externs (kconfig first), and BTF in which .kconfig is placed.

    Raises FormatError for one that BTF does not describe as ``__kconfig`` or ``__ksym``.
    """
    undefined = [s for s in image.symbols if s.undefined]
    if not undefined:
        return {}, btf
    if btf is None:
        raise image.error(
            f"it refers to {undefined[0].name!r} outside itself but has no BTF to say what it is.",
            hint="Compile with clang -g.",
        )
    sections: dict[int, str] = {}
    for found in btf.of_kind(KIND_DATASEC):
        for entry in found.variables:
            sections.setdefault(entry.type, found.name)
    kconfig: list[tuple[int, ExternSpec]] = []
    ksyms: list[ExternSpec] = []
    for symbol in undefined:
        ids = btf.find(symbol.name, (KIND_VAR, KIND_FUNC))
        if not ids:
            raise image.error(
                f"symbol {symbol.name!r} is undefined and BTF does not describe it.",
                hint="Declare it __ksym or __kconfig and use it, or define it.",
            )
        found = btf.type(ids[0])
        section = sections.get(found.id)
        if found.linkage != LINKAGE_EXTERN or section not in (KCONFIG, KSYMS):
            raise image.error(
                f"symbol {symbol.name!r} is undefined and neither a __kconfig nor a __ksym extern"
                f"{f' (its BTF section is {section})' if section else ''}."
            )
        weak = symbol.bind == STB_WEAK
        if section == KCONFIG:
            if found.kind == KIND_FUNC:
                raise image.error(f"extern function {symbol.name!r} cannot be a __kconfig value.")
            extern = ExternSpec(symbol.name, "kconfig", found.type, weak, size=btf.size(found.type))
            kconfig.append((_align(btf, found.type), extern))
        elif found.kind == KIND_FUNC:
            ksyms.append(ExternSpec(symbol.name, "kfunc", found.id, weak))
        else:
            ksyms.append(ExternSpec(symbol.name, "ksym", found.type, weak))
    # By falling alignment, then size, so that the values need no padding (libbpf's order).
    kconfig.sort(key=lambda item: (-item[0], item[1].size, item[1].name))
    ksyms.sort(key=lambda extern: extern.name)
    externs: dict[str, ExternSpec] = {}
    end = 0
    for align, extern in kconfig:
        offset = -(-end // align) * align
        externs[extern.name] = ExternSpec(
            extern.name, "kconfig", extern.type_id, extern.weak, extern.size, offset
        )
        end = offset + extern.size
    if end > _MAX_KCONFIG:
        raise image.error(
            f"its __kconfig externs have {end:,} bytes: no kernel's configuration has values of "
            f"more than {_MAX_KCONFIG:,}."
        )
    for extern in ksyms:
        externs[extern.name] = extern
    return externs, _place_kconfig(btf, externs, end)


def _place_kconfig(btf: Btf, externs: dict[str, ExternSpec], size: int) -> Btf:
    datasec = _datasec(btf, KCONFIG)
    if datasec is None:
        return btf
    entries = []
    for entry in datasec.variables:
        extern = externs.get(btf.type(entry.type).name)
        if extern is None:
            entries.append(entry)
        else:
            entries.append(SecVar(entry.type, extern.offset, extern.size))
    entries.sort(key=lambda e: e.offset)
    editor = Editor(btf)
    editor.datasec(datasec, size, entries)
    return editor.btf()


def kconfig_map(externs: dict[str, ExternSpec], btf: Btf | None, stem: str) -> MapSpec | None:
    """The map of kconfig values (filled when compiling for a kernel), or None."""
    values = [e for e in externs.values() if e.kind == "kconfig"]
    if not values:
        return None
    size = max(e.offset + e.size for e in values)
    return _data_map(stem, KCONFIG, btf, size=size, data=bytes(size), frozen=True)
