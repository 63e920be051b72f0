# SPDX-License-Identifier: BSD-2-Clause
"""Completing an object's BTF from its ELF.

A compiler leaves the size of a DATASEC and the offsets of global variables in it at zero, for a
linker to fill in. Nobody links a BPF object, so its loader must: the kernel refuses BTF whose
DATASEC has no size. Only words in place are changed, so type ids and string offsets stay.
"""

from __future__ import annotations

import struct

from pybpf.btf.consts import (
    KIND_DATASEC,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_INT,
    KIND_SHIFT,
    KIND_STRUCT,
    KIND_VAR,
)
from pybpf.btf.model import Btf, SecVar, Type
from pybpf.elf.image import STB_LOCAL, STT_OBJECT, ElfImage, Symbol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["KCONFIG", "KSYMS", "LINKAGE_GLOBAL", "LINKAGE_STATIC", "Editor", "complete", "loadable"]

KCONFIG, KSYMS = ".kconfig", ".ksyms"
LINKAGE_STATIC, LINKAGE_GLOBAL, LINKAGE_EXTERN = 0, 1, 2


class Editor:
    """Overwrites words of a BTF blob; ``btf()`` reads the result."""

    def __init__(self, btf: Btf) -> None:
        self.source = btf
        self.data = bytearray(btf.raw())
        self.changed = False
        self._order = "<" if btf.byteorder == "little" else ">"
        self._start = btf.header.type_range[0]

    def put(self, word: int, value: int) -> None:
        """Set 32-bit word number ``word`` of the type section."""
        at = self._start + 4 * word
        packed = struct.pack(self._order + "I", value & 0xFFFFFFFF)
        if self.data[at : at + 4] != packed:
            self.data[at : at + 4] = packed
            self.changed = True

    def info(self, found: Type, *, kind: int, vlen: int) -> None:
        """Set kind and vlen of a type; its kflag is cleared."""
        self.put(found.pos + 1, kind << KIND_SHIFT | vlen)

    def linkage(self, found: Type, linkage: int) -> None:
        """Set the linkage of a VAR or FUNC."""
        if found.kind == KIND_VAR:
            self.put(found.pos + 3, linkage)
        else:
            self.info(found, kind=KIND_FUNC, vlen=linkage)

    def datasec(self, found: Type, size: int, entries: Iterable[SecVar]) -> None:
        """Rewrite a DATASEC's size and entries; as many entries as it has."""
        self.put(found.pos + 2, size)
        at = found.pos + 3
        for entry in entries:
            for value in entry:
                self.put(at, value)
                at += 1

    def btf(self) -> Btf:
        """The edited BTF (the source itself when nothing changed)."""
        if not self.changed:
            return self.source
        source = self.source
        return Btf.parse(bytes(self.data), name=source.label, byteorder=source.byteorder)


def complete(image: ElfImage, btf: Btf) -> Btf:
    """BTF with the size of each DATASEC and the offset of each variable filled in.

    .kconfig and .ksyms have no ELF section and are left as they are. Raises FormatError where
    a DATASEC names a section or variable that the ELF does not have.
    """
    globals_: Mapping[str, Symbol] = {
        s.name: s
        for s in image.symbols
        if s.bind != STB_LOCAL and s.type == STT_OBJECT and s.name and s.section
    }
    editor = Editor(btf)
    for found in btf.of_kind(KIND_DATASEC):
        if found.name in (KCONFIG, KSYMS):
            continue
        # Static linkers of BPF objects have already placed the variables.
        placed = found.size_or_type
        section = image.by_name.get(found.name)
        size = placed or (section.size if section is not None else 0)
        if not size:
            raise image.error(
                f"it describes variables in section {found.name!r}, which the ELF does not have.",
                btf=btf.label,
            )
        entries = []
        for entry in found.variables:
            var = btf.type(entry.type)
            if var.kind != KIND_VAR:
                raise image.error(
                    f"type [{entry.type}] in DATASEC {found.name!r} is a {var.kind_name}, no VAR.",
                    btf=btf.label,
                )
            offset = entry.offset
            if var.linkage not in (LINKAGE_STATIC, LINKAGE_EXTERN):
                symbol = globals_.get(var.name)
                if symbol is None:
                    raise image.error(
                        f"it describes variable {var.name!r}, which has no symbol.",
                        btf=btf.label,
                        section=found.name,
                    )
                if not placed:
                    offset = symbol.value
                if symbol.hidden:
                    editor.linkage(var, LINKAGE_STATIC)
            entries.append(SecVar(entry.type, offset, entry.size))
        entries.sort(key=lambda e: e.offset)
        editor.datasec(found, size, entries)
    return editor.btf()


def _any_int(btf: Btf) -> Type | None:
    return next((found for found in btf.of_kind(KIND_INT) if found.size_or_type == 4), None)


def loadable(btf: Btf, *, static_functions: Iterable[int] = ()) -> bytes:
    """The bytes for BPF_BTF_LOAD: externs become what the kernel's checks allow.

    The kernel knows neither extern linkage nor functions in a DATASEC. So extern functions
    become global ones with named parameters, extern variables become allocated ones (an int
    each in .ksyms, where types may be incomplete), and .ksyms itself an anonymous structure of
    as many ints: a record of the same length, so that no other type moves.
    static_functions: FUNC ids whose symbols are hidden and whose linkage becomes static, so
    that the kernel verifies them with their callers.
    """
    editor = Editor(btf)
    integer = _any_int(btf)
    for type_id in static_functions:
        found = btf.type(type_id)
        if found.kind == KIND_FUNC:
            editor.linkage(found, LINKAGE_STATIC)
    for found in btf.of_kind(KIND_FUNC, KIND_VAR, KIND_DATASEC):
        if found.kind == KIND_FUNC and found.linkage == LINKAGE_EXTERN:
            editor.linkage(found, LINKAGE_GLOBAL)
            _name_parameters(editor, found)
        elif found.kind == KIND_VAR and found.linkage == LINKAGE_EXTERN:
            editor.linkage(found, LINKAGE_GLOBAL)
        elif found.kind == KIND_DATASEC and found.name == KSYMS and integer is not None:
            for entry in found.variables:
                var = btf.type(entry.type)
                if var.kind == KIND_VAR:
                    editor.put(var.pos + 2, integer.id)
            count = found.vlen
            editor.put(found.pos, 0)
            editor.info(found, kind=KIND_STRUCT, vlen=count)
            editor.datasec(found, 4 * count, [SecVar(0, integer.id, 32 * i) for i in range(count)])
    return bytes(editor.data)


def _name_parameters(editor: Editor, function: Type) -> None:
    """A global function's parameters must be named: unnamed ones get the function's own name."""
    btf = editor.source
    proto = btf.type(function.type)
    if proto.kind != KIND_FUNC_PROTO:
        return
    for index, (name, type_id) in enumerate(proto.raw_entries(2)):
        if name == 0 and type_id != 0:
            editor.put(proto.pos + 3 + 2 * index, function.name_off)
