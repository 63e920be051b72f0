# SPDX-License-Identifier: BSD-2-Clause
"""Writing BTF: build it type by type, or make a changed copy of an existing blob."""

from __future__ import annotations

import struct
import sys
from array import array

from pybpf.btf.consts import (
    BTF_MAGIC,
    BTF_VERSION,
    HEADER_LEN,
    KIND_ARRAY,
    KIND_CONST,
    KIND_DATASEC,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FLOAT,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_FWD,
    KIND_INT,
    KIND_PTR,
    KIND_RESTRICT,
    KIND_SHIFT,
    KIND_STRUCT,
    KIND_TYPE_TAG,
    KIND_TYPEDEF,
    KIND_UNION,
    KIND_VAR,
    KIND_VOLATILE,
    VLEN_MASK,
)
from pybpf.btf.model import Btf
from pybpf.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BtfWriter", "assemble", "copy_words", "rebuild", "swapped"]

_U32 = 0xFFFFFFFF


def assemble(
    words: array[int], strings: bytes, byteorder: str, *, layout: bytes = b"", flags: int = 0
) -> bytes:
    """A BTF blob of a type section (words in the machine's order) and a string section.

    The 7.x header with a layout section is written only where there is a layout.
    """
    order = "<" if byteorder == "little" else ">"
    types = array("I", words)
    if byteorder != sys.byteorder:
        types.byteswap()
    body = types.tobytes()
    hdr_len = HEADER_LEN + (8 if layout else 0)
    header = struct.pack(
        order + "HBBIIIII",
        BTF_MAGIC, BTF_VERSION, flags, hdr_len, 0, len(body), len(body), len(strings),
    )
    if layout:
        padding = b"\0" * (-(len(body) + len(strings)) % 4)
        header += struct.pack(
            order + "II", len(body) + len(strings) + len(padding), len(layout)
        )
        return header + body + strings + padding + layout
    return header + body + strings


class BtfWriter:
    """Builds BTF. Each add_* method gives the new type's id; ids count from ``start_id``.

    For a split BTF give the base: string offsets and ids then start behind the base's.
    """

    def __init__(self, byteorder: str = sys.byteorder, *, base: Btf | None = None) -> None:
        self.byteorder = byteorder
        self.start_id = base.count if base is not None else 1
        self._start_str = base.str_end if base is not None else 0
        self._words = array("I")
        self._strings = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}
        self.count = self.start_id

    def string(self, text: str) -> int:
        """Offset of ``text`` in the string section, added if need be."""
        if text not in self._offsets:
            self._offsets[text] = self._start_str + len(self._strings)
            self._strings += text.encode() + b"\0"
        return self._offsets[text]

    def raw(self, name_off: int, info: int, size_or_type: int, *words: int) -> int:
        """Any record, word for word (also a malformed one, for tests)."""
        self._words.extend(w & _U32 for w in (name_off, info, size_or_type, *words))
        self.count += 1
        return self.count - 1

    def add(
        self,
        kind: int,
        name: str = "",
        size_or_type: int = 0,
        entries: Sequence[Sequence[int]] = (),
        *,
        extra: Sequence[int] = (),
        kflag: bool = False,
        vlen: int | None = None,
    ) -> int:
        """One record; vlen is the number of entries unless given."""
        count = len(entries) if vlen is None else vlen
        if count > VLEN_MASK:
            raise UsageError(f"{count} entries are more than BTF can count")
        info = int(kflag) << 31 | kind << KIND_SHIFT | count
        flat = [*extra, *(word for entry in entries for word in entry)]
        return self.raw(self.string(name), info, size_or_type, *flat)

    def add_int(self, name: str, size: int, *, signed: bool = False, char: bool = False,
                boolean: bool = False, bits: int | None = None, offset: int = 0) -> int:
        """An integer of ``size`` bytes."""
        encoding = int(signed) | int(char) << 1 | int(boolean) << 2
        word = encoding << 24 | offset << 16 | (size * 8 if bits is None else bits)
        return self.add(KIND_INT, name, size, extra=(word,))

    def add_ptr(self, type_id: int) -> int:
        """A pointer (to void: 0)."""
        return self.add(KIND_PTR, "", type_id)

    def add_array(self, type_id: int, index_type: int, nelems: int) -> int:
        """An array."""
        return self.add(KIND_ARRAY, extra=(type_id, index_type, nelems))

    def add_struct(
        self,
        name: str,
        size: int,
        members: Sequence[tuple[str, int, int] | tuple[str, int, int, int]],
        *,
        union: bool = False,
        kflag: bool | None = None,
    ) -> int:
        """A struct or union; members are (name, type, bit offset[, bit-field size])."""
        bitfields = any(len(m) > 3 and m[3] for m in members) if kflag is None else kflag
        entries = [
            (self.string(m[0]), m[1], (m[3] << 24 if bitfields and len(m) > 3 else 0) | m[2])
            for m in members
        ]
        kind = KIND_UNION if union else KIND_STRUCT
        return self.add(kind, name, size, entries, kflag=bitfields)

    def add_enum(self, name: str, values: Sequence[tuple[str, int]], *, size: int = 4,
                 signed: bool | None = None) -> int:
        """An enum with 32-bit values."""
        sign = any(v < 0 for _, v in values) if signed is None else signed
        entries = [(self.string(n), v) for n, v in values]
        return self.add(KIND_ENUM, name, size, entries, kflag=sign)

    def add_enum64(self, name: str, values: Sequence[tuple[str, int]], *, size: int = 8,
                   signed: bool | None = None) -> int:
        """An enum with 64-bit values (v6.0)."""
        sign = any(v < 0 for _, v in values) if signed is None else signed
        entries = [(self.string(n), v & _U32, (v >> 32) & _U32) for n, v in values]
        return self.add(KIND_ENUM64, name, size, entries, kflag=sign)

    def add_fwd(self, name: str, *, union: bool = False) -> int:
        """A forward declaration."""
        return self.add(KIND_FWD, name, kflag=union)

    def add_typedef(self, name: str, type_id: int) -> int:
        """A typedef."""
        return self.add(KIND_TYPEDEF, name, type_id)

    def add_const(self, type_id: int) -> int:
        """const"""
        return self.add(KIND_CONST, "", type_id)

    def add_volatile(self, type_id: int) -> int:
        """volatile"""
        return self.add(KIND_VOLATILE, "", type_id)

    def add_restrict(self, type_id: int) -> int:
        """restrict"""
        return self.add(KIND_RESTRICT, "", type_id)

    def add_type_tag(self, name: str, type_id: int) -> int:
        """A type tag (v5.17)."""
        return self.add(KIND_TYPE_TAG, name, type_id)

    def add_float(self, name: str, size: int) -> int:
        """A floating-point type (v5.13)."""
        return self.add(KIND_FLOAT, name, size)

    def add_proto(self, return_type: int, params: Sequence[tuple[str, int]] = ()) -> int:
        """A function prototype."""
        return self.add(
            KIND_FUNC_PROTO, "", return_type, [(self.string(n), t) for n, t in params]
        )

    def add_func(self, name: str, proto: int, linkage: int = 1) -> int:
        """A function; linkage 0 static, 1 global, 2 extern."""
        return self.add(KIND_FUNC, name, proto, vlen=linkage)

    def add_var(self, name: str, type_id: int, linkage: int = 1) -> int:
        """A variable."""
        return self.add(KIND_VAR, name, type_id, extra=(linkage,))

    def add_datasec(self, name: str, size: int, variables: Sequence[tuple[int, int, int]]) -> int:
        """A data section; variables are (VAR id, offset, size)."""
        return self.add(KIND_DATASEC, name, size, variables)

    def add_decl_tag(self, name: str, type_id: int, component: int = -1) -> int:
        """A declaration tag (v5.16)."""
        return self.add(KIND_DECL_TAG, name, type_id, extra=(component,))

    def build(self, *, layout: bytes = b"") -> bytes:
        """The blob."""
        return assemble(self._words, bytes(self._strings), self.byteorder, layout=layout)

    def btf(self, *, base: Btf | None = None, name: str = "built") -> Btf:
        """The blob, read back."""
        return Btf.parse(self.build(), base=base, name=name)


def rebuild(
    btf: Btf, words: array[int], *, byteorder: str | None = None, strings: bytes | None = None
) -> bytes:
    """A blob like ``btf`` with other words (and strings): same layout section and flags."""
    start, end = btf.header.str_range
    lay_start, lay_end = btf.header.layout_range
    layout = bytearray(btf.data[lay_start:lay_end])
    if byteorder not in (None, btf.byteorder):
        # struct btf_layout: two single bytes, then 16 bits of flags
        layout[2::4], layout[3::4] = layout[3::4], layout[2::4]
    return assemble(
        words,
        bytes(btf.data[start:end]) if strings is None else strings,
        byteorder or btf.byteorder,
        layout=bytes(layout),
        flags=btf.header.flags,
    )


def copy_words(btf: Btf) -> array[int]:
    """The type section as words of the machine's own order, to be changed."""
    words = array("I")
    words.frombytes(memoryview(btf.words).tobytes())
    return words


def swapped(btf: Btf) -> bytes:
    """A copy in the other byte order."""
    other = "big" if btf.byteorder == "little" else "little"
    return rebuild(btf, copy_words(btf), byteorder=other)
