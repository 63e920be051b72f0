# SPDX-License-Identifier: BSD-2-Clause
"""Layout of values of a type, as plain tuples for pybpf.kernel.layout (and for a Plan).

("int", size, signed) · ("bool", 1) · ("float", size) · ("char", 1) · ("ptr", 8) ·
("enum", size, signed, ((name, value), …)) · ("array", layout, n, stride) ·
("struct" | "union", size, ((name, byte offset, layout[, bit offset, bit size]), …)) ·
("opaque", size)

A bit-field's bit offset counts from the start of the storage at its byte offset, as BTF counts
(from the least significant bit in little-endian data, from the most significant in big-endian).
"""

from __future__ import annotations

from pybpf.btf.consts import (
    KIND_ARRAY,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FLOAT,
    KIND_INT,
    KIND_PTR,
    KIND_STRUCT,
    KIND_UNION,
    KIND_VAR,
)
from pybpf.btf.model import Btf, Type
from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["layout"]

Layout = tuple["Any", ...]

# C allows deeper nesting, nobody uses it; a struct that contains itself would be endless.
_MAX_DEPTH = 32
# Parts of a layout written out. A type shared by many members counts each time: 32 structs that
# have the one before twice would otherwise be 2^32 parts for whoever prints or decodes them.
_MAX_PARTS = 100_000


def layout(btf: Btf, type_id: int) -> Layout:
    """The layout tuple of a type. Raises FormatError for types that have no values
    (void, functions, forward declarations) and for types that contain themselves."""
    return _Builder(btf).build(type_id, 0)


class _Builder:
    """Builds one layout; each type is laid out once."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self.done: dict[int, Layout] = {}
        self.parts: dict[int, int] = {}  # of each of these, written out
        self.sum = 0  # of the parts below the type being laid out

    def build(self, type_id: int, depth: int) -> Layout:
        found = self.btf.type(type_id)
        target = self.btf.skip(found.size_or_type if found.kind == KIND_VAR else type_id)
        if target.id in self.done:
            self._count(target, self.parts[target.id])
            return self.done[target.id]
        if depth > _MAX_DEPTH:
            raise FormatError(
                f"type [{target.id}] {target.kind_name} {target.name or '(anon)'} is nested more "
                f"than {_MAX_DEPTH} deep",
                btf=self.btf.label,
            )
        above, self.sum = self.sum, 0
        self._count(target, 1 + target.vlen)
        result = self.done[target.id] = self._one(target, depth)
        self.parts[target.id] = self.sum
        self.sum = above
        self._count(target, self.parts[target.id])
        return result

    def _count(self, target: Type, parts: int) -> None:
        self.sum += parts
        if self.sum > _MAX_PARTS:
            raise FormatError(
                f"type [{target.id}] {target.kind_name} {target.name or '(anon)'} makes a layout "
                f"of more than {_MAX_PARTS} parts",
                btf=self.btf.label,
            )

    def _one(self, target: Type, depth: int) -> Layout:
        kind = target.kind
        if kind == KIND_INT:
            return _int(target)
        if kind == KIND_PTR:
            return ("ptr", self.btf.ptr_size)
        if kind == KIND_FLOAT:
            return ("float", target.size) if target.size in (4, 8) else ("opaque", target.size)
        if kind in (KIND_ENUM, KIND_ENUM64) and target.size in (1, 2, 4, 8):
            values = tuple((e.name, e.value) for e in target.enumerators)
            return ("enum", target.size, target.kflag, values)
        if kind == KIND_ARRAY:
            element, _index, nelems = target.array
            stride = self.btf.size(element)
            if not self.btf.size(target.id):  # raises where nelems * stride overflows
                # Elements without a size take no place, however many there are said to be.
                return ("opaque", 0)
            return ("array", self.build(element, depth + 1), nelems, stride)
        if kind in (KIND_STRUCT, KIND_UNION):
            return self._composite(target, depth)
        return ("opaque", self.btf.size(target.id))

    def _composite(self, target: Type, depth: int) -> Layout:
        fields: list[tuple[Any, ...]] = []
        for member in target.members:
            size = self.btf.size(member.type)
            kind = self.btf.skip(member.type).kind
            if not member.name and (member.bit_size or kind not in (KIND_STRUCT, KIND_UNION)):
                # The padding that `int : 3;` makes; compilers leave it out of BTF.
                continue
            if member.bit_size:
                if member.bit_size > size * 8:
                    raise FormatError(
                        f"bit-field {member.name or '(anon)'} of [{target.id}] {target.name} has "
                        f"{member.bit_size} bits, its type {size * 8}",
                        btf=self.btf.label,
                    )
                # The storage unit that holds all of it, aligned to the declared type's size.
                start = member.bit_offset // 8
                if size:
                    start -= start % size
                bit = member.bit_offset - start * 8
                if bit + member.bit_size > size * 8:
                    start = member.bit_offset // 8
                    bit = member.bit_offset % 8
                fields.append(
                    (member.name, start, self.build(member.type, depth + 1), bit, member.bit_size)
                )
            else:
                if member.bit_offset % 8:
                    raise FormatError(
                        f"member {member.name or '(anon)'} of [{target.id}] {target.name} begins "
                        f"at bit {member.bit_offset} and is no bit-field",
                        btf=self.btf.label,
                    )
                start = member.bit_offset // 8
                fields.append((member.name, start, self.build(member.type, depth + 1)))
            if start + (0 if member.bit_size else size) > target.size:
                raise FormatError(
                    f"member {member.name or '(anon)'} of [{target.id}] {target.name} lies "
                    f"outside its {target.size} bytes",
                    btf=self.btf.label,
                )
        return (target.kind_name, target.size, tuple(fields))


def _int(target: Type) -> Layout:
    encoding = target.int_encoding
    if encoding & 4 and target.size == 1:
        return ("bool", 1)
    # Clang gives char the encoding "signed", gcc "char": a name is what both agree on.
    if target.size == 1 and (encoding & 2 or target.name == "char"):
        return ("char", 1)
    if target.size in (1, 2, 4, 8, 16):
        return ("int", target.size, bool(encoding & 1))
    return ("opaque", target.size)
