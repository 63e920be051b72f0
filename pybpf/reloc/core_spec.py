# SPDX-License-Identifier: BSD-2-Clause
"""CO-RE access specs: what a relocation means in a type, and the same access in another type.

A record's access string ("0:1:2:3") counts through every level of nesting, anonymous structs
included. A Spec keeps that and what is meaningful of it: named fields and array indices. The
target's spec is found by names, so its numbers differ.
Semantics: tools/lib/bpf/relo_core.c.
"""

from __future__ import annotations

from pybpf.btf.consts import ENUM_KINDS, KIND_ARRAY, KIND_STRUCT, KIND_UNION
from pybpf.btf.model import ArrayInfo, Btf, Type, essential_name
from pybpf.errors import FormatError, RelocationError
from pybpf.reloc.core_types import Budget, fields_compatible, types_compatible, types_match

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = [
    "ENUM_KINDS_OF_RELO",
    "ENUMVAL_EXISTS",
    "ENUMVAL_VALUE",
    "FIELD_BYTE_OFFSET",
    "FIELD_BYTE_SIZE",
    "FIELD_EXISTS",
    "FIELD_KINDS",
    "FIELD_LSHIFT_U64",
    "FIELD_RSHIFT_U64",
    "FIELD_SIGNED",
    "RELO_NAMES",
    "TYPE_EXISTS",
    "TYPE_ID_LOCAL",
    "TYPE_ID_TARGET",
    "TYPE_KINDS",
    "TYPE_MATCHES",
    "TYPE_SIZE",
    "Accessor",
    "Spec",
    "match",
    "parse",
]

# enum bpf_core_relo_kind (include/uapi/linux/bpf.h)
FIELD_BYTE_OFFSET = 0
FIELD_BYTE_SIZE = 1
FIELD_EXISTS = 2
FIELD_SIGNED = 3
FIELD_LSHIFT_U64 = 4
FIELD_RSHIFT_U64 = 5
TYPE_ID_LOCAL = 6
TYPE_ID_TARGET = 7
TYPE_EXISTS = 8
TYPE_SIZE = 9
ENUMVAL_EXISTS = 10
ENUMVAL_VALUE = 11
TYPE_MATCHES = 12

# As libbpf's log spells them.
RELO_NAMES = (
    "byte_off",
    "byte_sz",
    "field_exists",
    "signed",
    "lshift_u64",
    "rshift_u64",
    "local_type_id",
    "target_type_id",
    "type_exists",
    "type_size",
    "enumval_exists",
    "enumval_value",
    "type_matches",
)
FIELD_KINDS = frozenset(range(FIELD_BYTE_OFFSET, FIELD_RSHIFT_U64 + 1))
TYPE_KINDS = frozenset((TYPE_ID_LOCAL, TYPE_ID_TARGET, TYPE_EXISTS, TYPE_SIZE, TYPE_MATCHES))
ENUM_KINDS_OF_RELO = frozenset((ENUMVAL_EXISTS, ENUMVAL_VALUE))

_MAX_LEN = 64  # BPF_CORE_SPEC_MAX_LEN
_COMPOSITE = (KIND_STRUCT, KIND_UNION)
_U32 = 0xFFFFFFFF


class Accessor(NamedTuple):
    """One step: the type stepped into, the index there, the member's name (None: an index)."""

    type_id: int
    idx: int
    name: str | None


class Spec:
    """An access in one BTF: root type, steps, raw indices, bit offset from the root."""

    __slots__ = ("bit_offset", "btf", "kind", "raw", "root", "steps")

    def __init__(self, btf: Btf, root: int, kind: int) -> None:
        self.btf = btf
        self.root = root
        self.kind = kind
        self.steps: list[Accessor] = []
        self.raw: list[int] = []
        self.bit_offset = 0

    def expression(self) -> str:
        """The access as C writes it: "struct task_struct.signal.pids[1]", "enum e::V"."""
        root = self.btf.type(self.root)
        text = f"{root.kind_name} {root.name or '(anon)'}"
        if self.kind in ENUM_KINDS_OF_RELO:
            return f"{text}::{self.steps[0].name}" if self.steps else text
        for i, step in enumerate(self.steps):
            if step.name is not None:
                text += f".{step.name}"
            elif i or step.idx:
                text += f"[{step.idx}]"
        return text

    def text(self) -> str:
        """As libbpf logs it: "[7] struct s.a.b (0:1:2 @ offset 16)"."""
        text = f"[{self.root}] {self.expression()}"
        if self.kind in FIELD_KINDS:
            bits = f".{self.bit_offset % 8}" if self.bit_offset % 8 else ""
            raw = ":".join(map(str, self.raw))
            text += f" ({raw} @ offset {self.bit_offset // 8}{bits})"
        elif self.kind in ENUM_KINDS_OF_RELO and self.steps:
            value = self.btf.type(self.steps[0].type_id).enumerators[self.steps[0].idx].value
            text += f" = {value}"
        return text


def parse(btf: Btf, type_id: int, access: str, kind: int) -> Spec:
    """The spec a relocation record gives. Raises RelocationError, FormatError."""
    spec = Spec(btf, type_id, kind)
    if kind in TYPE_KINDS:
        if access != "0":
            raise _bad(spec, access, "a type relocation's access string is 0")
        return spec
    parts = access.split(":")
    if not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        raise _bad(spec, access, "it is not numbers separated by colons")
    if len(parts) > _MAX_LEN:
        raise _bad(spec, access, f"it has more than {_MAX_LEN} steps")
    spec.raw = [int(p) for p in parts]
    root = btf.skip(type_id)
    first = spec.raw[0]
    if kind in ENUM_KINDS_OF_RELO:
        if root.kind not in ENUM_KINDS or len(spec.raw) > 1 or first >= root.vlen:
            raise _bad(spec, access, "it names no value of an enum")
        spec.steps.append(Accessor(root.id, first, root.enumerators[first].name))
        return spec
    if kind not in FIELD_KINDS:
        raise _bad(spec, access, f"CO-RE relocation kind {kind} is not known")
    spec.steps.append(Accessor(root.id, first, None))
    spec.bit_offset = first * btf.size(root.id) * 8 & _U32
    current = root
    for index in spec.raw[1:]:
        current = btf.skip(current.id)
        if current.kind in _COMPOSITE:
            if index >= current.vlen:
                raise _bad(
                    spec, access, f"{_label(current)} has {current.vlen} members, not {index + 1}"
                )
            name_off, member_type, offset = member_words(current, index)
            spec.bit_offset = spec.bit_offset + offset & _U32
            if name_off:
                name = btf.name(name_off)
                if not name:
                    raise _bad(spec, access, f"a member of {_label(current)} has an empty name")
                spec.steps.append(Accessor(current.id, index, name))
            current = btf.type(member_type)
        elif current.kind == KIND_ARRAY:
            array = current.array
            current = btf.skip(array.type)
            if index >= array.nelems and not _flexible(btf, spec.steps[-1], array):
                raise _bad(spec, access, f"index {index} is past an array of {array.nelems}")
            spec.steps.append(Accessor(current.id, index, None))
            spec.bit_offset = spec.bit_offset + index * btf.size(current.id) * 8 & _U32
        else:
            raise _bad(spec, access, f"{_label(current)} has nothing to step into")
    return spec


def match(local: Spec, target: Btf, target_id: int) -> Spec | None:
    """The same access in a candidate type, or None where it has none.

    Raises RelocationError, FormatError when the candidate cannot be judged.
    """
    spec = Spec(target, target_id, local.kind)
    budget = Budget()
    if local.kind == TYPE_MATCHES:
        fits = types_match(local.btf, local.root, target, target_id, budget)
        return spec if fits else None
    if local.kind in TYPE_KINDS:
        fits = types_compatible(local.btf, local.root, target, target_id, budget)
        return spec if fits else None
    if local.kind in ENUM_KINDS_OF_RELO:
        return _match_enum(local, spec)
    current = target_id
    for i, step in enumerate(local.steps):
        found = target.skip(current)
        if step.name is not None:
            path = _member(found, step.name, budget, _MAX_LEN - len(spec.raw))
            if path is None:
                return None
            member_type = _follow(spec, path)
            of = local.btf.type(step.type_id)
            if not fields_compatible(
                local.btf, member_words(of, step.idx)[1], target, member_type
            ):
                return None
            current = member_type
        else:
            # The first index applies to the root itself, as pointer arithmetic does.
            if i:
                if found.kind != KIND_ARRAY:
                    return None
                array = found.array
                if step.idx >= array.nelems and not _flexible(target, spec.steps[-1], array):
                    return None
                found = target.skip(array.type)
            if len(spec.raw) == _MAX_LEN:
                raise RelocationError(f"{local.expression()} is nested more than {_MAX_LEN} deep")
            spec.steps.append(Accessor(found.id, step.idx, None))
            spec.raw.append(step.idx)
            size = target.size(found.id)
            spec.bit_offset = spec.bit_offset + step.idx * size * 8 & _U32
            current = found.id
    return spec


def _match_enum(local: Spec, spec: Spec) -> Spec | None:
    found = spec.btf.skip(spec.root)
    if found.kind not in ENUM_KINDS:
        return None
    wanted = essential_name(local.steps[0].name or "")
    for index, value in enumerate(found.enumerators):
        if essential_name(value.name) == wanted:
            spec.steps.append(Accessor(found.id, index, value.name))
            spec.raw.append(index)
            return spec
    return None


def member_words(of: Type, index: int) -> tuple[int, int, int]:
    """(name offset, type id, bit offset) of one member, the others left unread."""
    at = of.pos + 3 + 3 * index
    name_off, member_type, offset = of.btf.words[at : at + 3]
    return name_off, member_type, offset & 0xFFFFFF if of.kflag else offset


def member_bits(of: Type, index: int) -> int:
    """Bit-field size of a member; 0 for other members and in structs without kflag."""
    return of.btf.words[of.pos + 5 + 3 * index] >> 24 if of.kflag else 0


def _member(of: Type, name: str, budget: Budget, room: int) -> list[tuple[Type, int]] | None:
    """The way to the member called ``name``, through anonymous structs and unions."""
    if of.kind not in _COMPOSITE:
        return None
    budget.take(of.vlen)
    btf = of.btf
    for index, found in enumerate(of.member_names):
        if room <= 0:
            raise RelocationError(f"{_label(of)} is nested more than {_MAX_LEN} deep")
        if found == name:
            return [(of, index)]
        if not found:
            inner = btf.skip(member_words(of, index)[1])
            path = _member(inner, name, budget, room - 1)
            if path is not None:
                return [(of, index), *path]
    return None


def _follow(spec: Spec, path: list[tuple[Type, int]]) -> int:
    """Add the steps of ``path`` to the spec; gives the member's type."""
    member_type = 0
    for of, index in path:
        _name, member_type, offset = member_words(of, index)
        spec.raw.append(index)
        spec.bit_offset = spec.bit_offset + offset & _U32
    of, index = path[-1]
    spec.steps.append(Accessor(of.id, index, of.member_names[index]))
    return member_type


def _flexible(btf: Btf, step: Accessor, array: ArrayInfo) -> bool:
    """Whether ``array``, reached by ``step``, is the flexible array a struct ends with."""
    return (
        step.name is not None
        and not array.nelems
        and step.idx == btf.type(step.type_id).vlen - 1
    )


def _label(found: Type) -> str:
    return f"[{found.id}] {found.kind_name} {found.name or '(anon)'}"


def _bad(spec: Spec, access: str, why: str) -> RelocationError | FormatError:
    root = spec.btf.type(spec.root)
    return RelocationError(
        f"the access string {access!r} of {_label(root)} makes no sense: {why}."
    )
