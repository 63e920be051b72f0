# SPDX-License-Identifier: BSD-2-Clause
"""A BTF type, decoded as far as it is asked for."""

from __future__ import annotations

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_DATASEC,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FLOAT,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_INT,
    KIND_MASK,
    KIND_STRUCT,
    KIND_UNION,
    KIND_VAR,
    KIND_VOID,
    VLEN_MASK,
    kind_name,
)
from pybpf.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NamedTuple

    from pybpf.btf.model import Btf
else:
    from pybpf.record import NamedTuple

__all__ = [
    "SIZED",
    "ArrayInfo",
    "Enumerator",
    "Member",
    "Param",
    "SecVar",
    "Type",
    "essential_name",
]

# Kinds whose size stands in the record.
SIZED = frozenset(
    (KIND_INT, KIND_STRUCT, KIND_UNION, KIND_ENUM, KIND_ENUM64, KIND_FLOAT, KIND_DATASEC)
)


class Member(NamedTuple):
    """A member of a struct or union. bit_size: 0 unless a bit-field."""

    name: str
    type: int
    bit_offset: int
    bit_size: int


class Enumerator(NamedTuple):
    """A named value of an enum or enum64 (signed where the enum says so)."""

    name: str
    value: int


class Param(NamedTuple):
    """A parameter of a function prototype; type 0 with no name: variable arguments."""

    name: str
    type: int


class SecVar(NamedTuple):
    """A variable in a DATASEC: type id of the VAR, offset and size in bytes."""

    type: int
    offset: int
    size: int


class ArrayInfo(NamedTuple):
    """An array: element type, index type, number of elements."""

    type: int
    index_type: int
    nelems: int


def essential_name(name: str) -> str:
    """``name`` without its CO-RE flavour: everything from the last X___Y separator on."""
    at = len(name) - 5
    while at >= 0:
        # X and Y are no underscores: "a____b" has no flavour (libbpf: bpf_core_essential_name_len)
        if name[at + 1 : at + 4] == "___" and name[at] != "_" and name[at + 4] != "_":
            return name[: at + 1]
        at -= 1
    return name


class Type:
    """One type. The fixed part is read at once, what follows it when it is asked for.

    id: type id; kind: BTF_KIND_*; kflag: bit 31 of info; vlen: number of entries;
    size_or_type: bytes for a sized kind, a type id for a referring one.
    """

    __slots__ = (
        "_entries",
        "_member_names",
        "_name",
        "btf",
        "id",
        "kflag",
        "kind",
        "name_off",
        "pos",
        "size_or_type",
        "vlen",
    )

    def __init__(
        self, btf: Btf, type_id: int, pos: int, name_off: int, info: int, size_or_type: int
    ) -> None:
        self.btf = btf
        self.id = type_id
        self.pos = pos  # word index in btf.words
        self.name_off = name_off
        self.kind = (info >> 24) & KIND_MASK
        self.kflag = bool(info >> 31)
        self.vlen = info & VLEN_MASK
        self.size_or_type = size_or_type
        self._name: str | None = None
        self._entries: object = None
        self._member_names: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"<Type [{self.id}] {kind_name(self.kind)} {self.name or '(anon)'}>"

    @property
    def name(self) -> str:
        """The name; empty for an anonymous type."""
        if self._name is None:
            self._name = self.btf.name(self.name_off)
        return self._name

    @property
    def kind_name(self) -> str:
        """The kind in words, as bpftool spells it in lower case."""
        return kind_name(self.kind)

    @property
    def size(self) -> int:
        """Size in bytes of a sized kind (int, struct, union, enum, float, datasec)."""
        if self.kind not in SIZED:
            raise UsageError(f"type [{self.id}] is a {self.kind_name}, which has no size field")
        return self.size_or_type

    @property
    def type(self) -> int:
        """Id of the type a referring kind refers to; of an array, its element type."""
        if self.kind == KIND_ARRAY:
            return self.array.type
        if self.kind in SIZED or self.kind == KIND_VOID:
            raise UsageError(f"type [{self.id}] is a {self.kind_name}, which refers to no type")
        return self.size_or_type

    def raw_entries(self, width: int) -> Iterator[tuple[int, ...]]:
        """The words of each of the vlen entries, ``width`` words an entry."""
        at = self.pos + 3
        words = self.btf.words[at : at + width * self.vlen]
        return zip(*[iter(words)] * width, strict=True)

    @property
    def members(self) -> tuple[Member, ...]:
        """Members of a struct or union, in order; () for other kinds."""
        if self.kind not in (KIND_STRUCT, KIND_UNION):
            return ()
        if self._entries is None:
            name = self.btf.name
            if self.kflag:
                self._entries = tuple(
                    Member(name(n), t, o & 0xFFFFFF, o >> 24) for n, t, o in self.raw_entries(3)
                )
            else:
                self._entries = tuple(
                    Member(name(n), t, o, self.btf.int_bitfield_size(t))
                    for n, t, o in self.raw_entries(3)
                )
        return self._entries  # type: ignore[return-value]

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members alone: touches no other type, as members may have to."""
        if self._member_names is None:
            if self.kind not in (KIND_STRUCT, KIND_UNION):
                return ()
            at = self.pos + 3
            offsets = self.btf.words[at : at + 3 * self.vlen : 3]
            self._member_names = tuple(map(self.btf.name, offsets))
        return self._member_names

    @property
    def enumerators(self) -> tuple[Enumerator, ...]:
        """Values of an enum or enum64, in order; () for other kinds."""
        if self.kind not in ENUM_KINDS:
            return ()
        if self._entries is None:
            name = self.btf.name
            if self.kind == KIND_ENUM:
                pairs = ((n, v, 32) for n, v in self.raw_entries(2))
            else:
                pairs = ((n, lo | hi << 32, 64) for n, lo, hi in self.raw_entries(3))
            self._entries = tuple(
                Enumerator(name(n), v - (1 << bits) if self.kflag and v >> (bits - 1) else v)
                for n, v, bits in pairs
            )
        return self._entries  # type: ignore[return-value]

    @property
    def params(self) -> tuple[Param, ...]:
        """Parameters of a function prototype; () for other kinds."""
        if self.kind != KIND_FUNC_PROTO:
            return ()
        if self._entries is None:
            name = self.btf.name
            self._entries = tuple(Param(name(n), t) for n, t in self.raw_entries(2))
        return self._entries  # type: ignore[return-value]

    @property
    def variables(self) -> tuple[SecVar, ...]:
        """Variables of a DATASEC; () for other kinds."""
        if self.kind != KIND_DATASEC:
            return ()
        return tuple(SecVar(*entry) for entry in self.raw_entries(3))

    @property
    def array(self) -> ArrayInfo:
        """Element type, index type and length of an array."""
        if self.kind != KIND_ARRAY:
            raise UsageError(f"type [{self.id}] is a {self.kind_name}, not an array")
        return ArrayInfo(*self.btf.words[self.pos + 3 : self.pos + 6])

    @property
    def int_encoding(self) -> int:
        """Encoding bits of an int: 1 signed, 2 char, 4 bool; 0 for other kinds."""
        return (self.btf.words[self.pos + 3] >> 24) & 0xF if self.kind == KIND_INT else 0

    @property
    def int_offset(self) -> int:
        """Bit offset of an int inside its storage (only pre-kflag bit-fields have one)."""
        return (self.btf.words[self.pos + 3] >> 16) & 0xFF if self.kind == KIND_INT else 0

    @property
    def int_bits(self) -> int:
        """Number of bits of an int."""
        return self.btf.words[self.pos + 3] & 0xFF if self.kind == KIND_INT else 0

    @property
    def signed(self) -> bool:
        """True for a signed int and for an enum with negative values."""
        return bool(self.int_encoding & 1) or (self.kind in ENUM_KINDS and self.kflag)

    @property
    def linkage(self) -> int:
        """Of a VAR or FUNC: 0 static, 1 global, 2 extern."""
        if self.kind == KIND_VAR:
            return self.btf.words[self.pos + 3]
        return self.vlen if self.kind == KIND_FUNC else 0

    @property
    def component(self) -> int:
        """Of a DECL_TAG: index of the member or parameter it marks, -1 for the whole type."""
        if self.kind != KIND_DECL_TAG:
            return -1
        value = self.btf.words[self.pos + 3]
        return value - (1 << 32) if value >> 31 else value
