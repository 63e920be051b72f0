# SPDX-License-Identifier: BSD-2-Clause
"""Maps defined through BTF: variables in the section ``.maps``.

Each is a struct whose members say the map's attributes: ``int (*name)[N]`` is the number N,
``T *key`` a type, ``values[]`` the type of what an outer map or program array holds. The
macros __uint, __type, __array and __ulong of libbpf's bpf_helpers.h write them.
"""

from __future__ import annotations

import os

from pybpf.btf.consts import (
    KIND_ARRAY,
    KIND_DATASEC,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FUNC_PROTO,
    KIND_PTR,
    KIND_STRUCT,
    KIND_VAR,
)
from pybpf.btf.model import Btf, Member, Type
from pybpf.elf.fixup import LINKAGE_GLOBAL
from pybpf.elf.image import ElfImage, Section
from pybpf.errors import FormatError
from pybpf.record import replace
from pybpf.spec import MapSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["MAPS", "MapDefinition", "read_maps", "ring_size"]

MAPS = ".maps"

_IN_MAP = (abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_HASH_OF_MAPS)
_RINGS = (abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF)
_NUMBERS = {"type", "max_entries", "map_flags", "numa_node", "key_size", "value_size", "pinning"}


class MapDefinition:
    """A map's place in ``.maps``: its spec, where it stands, and where ``values`` begins.

    offset, size: bytes in the section; values_offset: byte of the flexible array ``values`` in
    the definition, -1 where there is none (its relocations give the initial contents).
    """

    def __init__(self, spec: MapSpec, offset: int, size: int, values_offset: int) -> None:
        self.spec = spec
        self.offset = offset
        self.size = size
        self.values_offset = values_offset


def ring_size(size: int) -> int:
    """A ring buffer's size made valid: a power of two that is a multiple of the page size."""
    page = os.sysconf("SC_PAGESIZE")
    if size == 0 or (size & (size - 1) == 0 and size % page == 0):
        return size
    fit = page
    while fit <= size:
        fit *= 2
    return fit if fit < 1 << 32 else size


def read_maps(image: ElfImage, btf: Btf | None) -> list[MapDefinition]:
    """The maps of ``.maps`` in the order of the section. Raises FormatError."""
    section = image.by_name.get(MAPS)
    if section is None or section.size == 0:
        return []
    if btf is None:
        raise image.error(
            "it defines maps through BTF but has no BTF.",
            section=MAPS,
            hint="Compile with clang -g, and strip with llvm-strip -g, which keeps BTF.",
        )
    ids = btf.find(MAPS, KIND_DATASEC)
    if not ids:
        raise image.error("there is no BTF for it.", section=MAPS)
    out = []
    for entry in btf.type(ids[0]).variables:
        var = btf.type(entry.type)
        if var.kind != KIND_VAR or not var.name:
            raise image.error(f"type [{entry.type}] is no named variable.", section=MAPS)
        try:
            out.append(_read_map(image, section, btf, var, entry.offset, entry.size))
        except FormatError as exc:
            raise exc.at(object=image.name, map=var.name) from None
    return out


def _read_map(
    image: ElfImage, section: Section, btf: Btf, var: Type, offset: int, size: int
) -> MapDefinition:
    if var.linkage != LINKAGE_GLOBAL:
        raise FormatError(
            "the map is static or extern; only global maps are supported.",
            hint="Remove `static` from its definition.",
        )
    struct = btf.skip(var.type)
    if struct.kind != KIND_STRUCT:
        raise FormatError(f"its definition is a {struct.kind_name}, no struct.")
    if offset + size > section.size or struct.size_or_type > size:
        raise FormatError(f"its definition lies outside section {MAPS}.")
    spec, values = _definition(btf, var.name, struct)
    return MapDefinition(spec, offset, size, values)


def _definition(btf: Btf, name: str, struct: Type, *, inner: bool = False) -> tuple[MapSpec, int]:
    got: dict[str, Any] = {"type": 0}
    values_offset = -1
    members = struct.members
    for position, member in enumerate(members):
        field = member.name
        if not field:
            raise FormatError(f"member {position} of its definition has no name.")
        if field in _NUMBERS:
            _put(got, _RENAME.get(field, field), _number(btf, member))
        elif field == "map_extra":
            _put(got, "extra", _long(btf, member))
        elif field in ("key", "value"):
            target = _pointee(btf, member)
            _put(got, f"{field}_size", btf.size(target))
            got[f"{field}_type_id"] = target
        elif field == "values":
            if position != len(members) - 1:
                raise FormatError("`values` must be the last member of its definition.")
            if inner:
                raise FormatError("an inner map cannot itself hold maps or programs.")
            got["inner"] = _values(btf, name, got.get("type", 0), member)
            _put(got, "value_size", 4)
            values_offset = member.bit_offset // 8
        else:
            raise FormatError(
                f"its definition has an unknown member {field!r}; known: "
                f"{', '.join(sorted(_NUMBERS | {'key', 'value', 'values', 'map_extra'}))}."
            )
    if not got["type"]:
        raise FormatError("its definition gives no type.")
    if (
        values_offset >= 0
        and got.get("key_size", 4) != 4
        and (got["type"] != abi.BPF_MAP_TYPE_HASH_OF_MAPS)
    ):
        raise FormatError(f"its key has {got['key_size']} bytes; with `values` it must have 4.")
    if values_offset >= 0:
        got.setdefault("key_size", 4)
    pin = got.get("pin", 0)
    if pin not in (0, 1):
        raise FormatError(f"pinning {pin} is unknown; 0 is none, 1 is by name.")
    if pin and inner:
        raise FormatError("an inner map cannot be pinned.")
    if got["type"] in _RINGS:
        got["max_entries"] = ring_size(got.get("max_entries", 0))
    return MapSpec(name=name, **got), values_offset


_RENAME = {"map_flags": "flags", "pinning": "pin"}


def _put(got: dict[str, Any], field: str, value: int) -> None:
    if got.get(field) and got[field] != value:
        raise FormatError(f"its definition says {field} {got[field]} and {field} {value}.")
    got[field] = value


def _number(btf: Btf, member: Member) -> int:
    """``int (*name)[N]`` → N."""
    pointer = btf.skip(member.type)
    if pointer.kind == KIND_PTR:
        array = btf.type(pointer.type)
        if array.kind == KIND_ARRAY:
            return array.array.nelems
    raise FormatError(f"{member.name!r} of its definition is no number (int (*)[N]).")


def _long(btf: Btf, member: Member) -> int:
    """A 64-bit number: as __uint, or an enum of one value (__ulong)."""
    found = btf.skip(member.type)
    if found.kind in (KIND_ENUM, KIND_ENUM64):
        values = found.enumerators
        if len(values) == 1:
            value = values[0].value
            if found.kind == KIND_ENUM and value >> 31 == 1:
                value -= 1 << 32  # without enum64 the compiler kept the low half; so does libbpf
            return value & 0xFFFFFFFFFFFFFFFF
    return _number(btf, member)


def _pointee(btf: Btf, member: Member) -> int:
    pointer = btf.skip(member.type)
    if pointer.kind != KIND_PTR:
        raise FormatError(f"{member.name!r} of its definition is no pointer to a type.")
    return pointer.type


def _values(btf: Btf, name: str, map_type: int, member: Member) -> MapSpec | None:
    """The inner map that ``values`` describes, or None for a program array."""
    array = btf.type(member.type)
    if array.kind != KIND_ARRAY or array.array.nelems:
        raise FormatError("`values` must be an array without a length.")
    pointer = btf.skip(array.array.type)
    if pointer.kind != KIND_PTR:
        raise FormatError("`values` must hold pointers.")
    target = btf.skip(pointer.type)
    if map_type in _IN_MAP:
        if target.kind != KIND_STRUCT:
            raise FormatError("`values` of a map of maps must point to a map definition.")
        spec, _ = _definition(btf, f"{name}.inner", target, inner=True)
        return replace(spec, section=MAPS)
    if map_type == abi.BPF_MAP_TYPE_PROG_ARRAY:
        if target.kind != KIND_FUNC_PROTO:
            raise FormatError("`values` of a program array must point to functions.")
        return None
    raise FormatError("only maps of maps and program arrays have `values`.")
