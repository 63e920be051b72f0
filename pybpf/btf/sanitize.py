# SPDX-License-Identifier: BSD-2-Clause
"""BTF for older kernels: kinds that a kernel does not know, replaced by ones of the same length.

A kernel refuses BTF with a kind it does not know, and with it the names of maps, func_info and
line_info. So what is unknown becomes something older that takes as many bytes: ids stay, and
so does what programs and maps refer to. The replacements are libbpf's
(bpf_object__sanitize_btf() in tools/lib/bpf/libbpf.c).
"""

from __future__ import annotations

from array import array
from collections.abc import Collection

from pybpf.btf.consts import (
    KIND_CONST,
    KIND_DATASEC,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FLOAT,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_INT,
    KIND_SHIFT,
    KIND_STRUCT,
    KIND_TYPE_TAG,
    KIND_TYPEDEF,
    KIND_UNION,
    KIND_VAR,
    VLEN_MASK,
)
from pybpf.btf.model import Btf, Type
from pybpf.btf.write import copy_words, rebuild
from pybpf.errors import UsageError

__all__ = ["FEATURES", "needed", "sanitize"]

# What a kernel may lack → the version that brought it.
FEATURES = {
    "func": "v5.0",  # FUNC, FUNC_PROTO (2667a2626f4d)
    "datasec": "v5.2",  # VAR, DATASEC (1dc92851849c)
    "func_global": "v5.6",  # linkage of a FUNC (51c39bb1d5d1)
    "float": "v5.13",  # FLOAT (b1828f0b0486)
    "decl_tag": "v5.16",  # DECL_TAG (b5ea834dde6b)
    "type_tag": "v5.17",  # TYPE_TAG (8c42d2fa4eeb)
    "enum64": "v6.0",  # ENUM64, signed enums (6089fb325cf7)
    "qmark_datasec": "v6.10",  # '?' in a section's name
}


def needed(btf: Btf) -> frozenset[str]:
    """Which of FEATURES the BTF makes use of."""
    found: set[str] = set()
    for one in btf.of_kind(*{kind for kinds in _KINDS.values() for kind in kinds}):
        kind = one.kind
        if kind in (KIND_FUNC, KIND_FUNC_PROTO):
            found.add("func")
            if kind == KIND_FUNC and one.linkage == 1:
                found.add("func_global")
        elif kind in (KIND_VAR, KIND_DATASEC):
            found.add("datasec")
            if "?" in one.name:
                found.add("qmark_datasec")
        elif kind in _BY_KIND:
            found.add(_BY_KIND[kind])
        elif kind == KIND_ENUM and one.kflag:
            found.add("enum64")
    return frozenset(found)


_BY_KIND = {
    KIND_FLOAT: "float",
    KIND_DECL_TAG: "decl_tag",
    KIND_TYPE_TAG: "type_tag",
    KIND_ENUM64: "enum64",
}
# Feature → kinds of types that are otherwise without it.
_KINDS = {
    "func": (KIND_FUNC, KIND_FUNC_PROTO),
    "datasec": (KIND_VAR, KIND_DATASEC),
    "func_global": (KIND_FUNC,),
    "float": (KIND_FLOAT,),
    "decl_tag": (KIND_DECL_TAG,),
    "type_tag": (KIND_TYPE_TAG,),
    "enum64": (KIND_ENUM, KIND_ENUM64),
    "qmark_datasec": (KIND_DATASEC,),
}


def sanitize(btf: Btf, missing: Collection[str]) -> bytes:
    """A copy for a kernel without the features ``missing`` (names from FEATURES).

    Raises UsageError for other names. Split BTF is not taken.
    """
    unknown = set(missing) - FEATURES.keys()
    if unknown:
        raise UsageError(f"there is no BTF feature {', '.join(sorted(unknown))}; "
                         f"there are {', '.join(FEATURES)}")
    if btf.base is not None:
        raise UsageError("split BTF cannot be made to fit an older kernel")
    return _Sanitizer(btf, frozenset(missing)).run()


class _Sanitizer:
    def __init__(self, btf: Btf, missing: frozenset[str]) -> None:
        self.btf = btf
        self.missing = missing
        self.words = copy_words(btf)
        start, end = btf.header.str_range
        self.strings = bytearray(btf.data[start:end])
        self.placeholder = 0

    def run(self) -> bytes:
        """The blob."""
        kinds = {kind for feature in self.missing for kind in _KINDS[feature]}
        for found in self.btf.of_kind(*kinds):
            kind = found.kind
            if kind in (KIND_VAR, KIND_DECL_TAG):
                feature = "datasec" if kind == KIND_VAR else "decl_tag"
                if feature in self.missing:
                    self._to_int(found)
            elif kind == KIND_DATASEC:
                self._datasec(found)
            elif kind == KIND_FUNC_PROTO:
                if "func" in self.missing:
                    self._put(found, KIND_ENUM, size=4)
            elif kind == KIND_FUNC:
                if "func" in self.missing:
                    self._put(found, KIND_TYPEDEF, vlen=0)
                elif "func_global" in self.missing:
                    self._put(found, KIND_FUNC, vlen=0)
            elif kind == KIND_FLOAT:
                if "float" in self.missing:
                    self._put(found, KIND_STRUCT, name_off=0)
            elif kind == KIND_TYPE_TAG:
                if "type_tag" in self.missing:
                    self._put(found, KIND_CONST, name_off=0)
            elif "enum64" in self.missing:
                if kind == KIND_ENUM64:
                    self._enum64(found)
                elif kind == KIND_ENUM:
                    self._put(found, KIND_ENUM)  # without its sign
        return rebuild(self.btf, self.words, strings=bytes(self.strings))

    def _put(
        self,
        found: Type,
        kind: int,
        *,
        vlen: int | None = None,
        size: int | None = None,
        name_off: int | None = None,
    ) -> None:
        """Another kind with the same entries; kflag goes."""
        at = found.pos
        count = found.vlen if vlen is None else vlen
        self.words[at + 1] = kind << KIND_SHIFT | (count & VLEN_MASK)
        if size is not None:
            self.words[at + 2] = size
        if name_off is not None:
            self.words[at] = name_off

    def _to_int(self, found: Type) -> None:
        """VAR and DECL_TAG have one word behind them, as an INT has: a char."""
        self._put(found, KIND_INT, vlen=0, size=1)
        self.words[found.pos + 3] = 8

    def _datasec(self, found: Type) -> None:
        """A structure whose members are the variables; only C names may name a type then."""
        if "datasec" in self.missing:
            self._rename(found.name_off, b".?")
            for i, var in enumerate(found.variables):
                at = found.pos + 3 + 3 * i
                name_off = self.btf.type(var.type).name_off
                # Bits, in a word: an offset of half a GiB is nonsense, and the kernel says so.
                bits = var.offset * 8 & 0xFFFFFFFF
                self.words[at : at + 3] = array("I", (name_off, var.type, bits))
            self._put(found, KIND_STRUCT)
        elif "qmark_datasec" in self.missing:
            self._rename(found.name_off, b"?")

    def _rename(self, offset: int, what: bytes) -> None:
        """Replace characters of a name by underscores, where it stands."""
        end = self.strings.find(0, offset)
        for at in range(offset, end):
            if self.strings[at] in what:
                self.strings[at] = ord("_")

    def _enum64(self, found: Type) -> None:
        """A union of 8-byte integers named like the values, which are lost."""
        if not self.placeholder:
            self.placeholder = self.btf.count
            name = len(self.strings)
            self.strings += b"enum64_placeholder\0"
            self.words.extend((name, KIND_INT << KIND_SHIFT, 8, 64))
        for i in range(found.vlen):
            at = found.pos + 3 + 3 * i
            self.words[at + 1] = self.placeholder
            self.words[at + 2] = 0
        self._put(found, KIND_UNION)
