# SPDX-License-Identifier: BSD-2-Clause
"""Whether all that the BTF of an object refers to is there: names, types, prototypes.

The kernel's own BTF is read lazily and never walked for this. An object's is small, and libbpf
decides by such a walk whether it uses the BTF at all: these are its rules (btf_sanity_check(),
since libbpf 1.3), so that a damaged object is judged as there.
"""

from __future__ import annotations

from pybpf.btf.consts import (
    KIND_ARRAY,
    KIND_DATASEC,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_MASK,
    KIND_PTR,
    KIND_SHIFT,
    KIND_STRUCT,
    KIND_TYPEDEF,
    KIND_UNION,
    KIND_VAR,
    MODIFIERS,
    VLEN_MASK,
)
from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybpf.btf.model import Btf

__all__ = ["check"]

_REFERRING = MODIFIERS | {KIND_PTR, KIND_TYPEDEF, KIND_VAR, KIND_DECL_TAG, KIND_FUNC}
# Kind → words an entry, and which of them is a name and which a type (-1: none is).
_ENTRIES = {
    KIND_STRUCT: (3, 0, 1),
    KIND_UNION: (3, 0, 1),
    KIND_ENUM: (2, 0, -1),
    KIND_ENUM64: (3, 0, -1),
    KIND_FUNC_PROTO: (2, 0, 1),
    KIND_DATASEC: (3, -1, 0),
}


def check(btf: Btf) -> None:
    """Raises FormatError for a name outside the strings, a reference to no type, and a function
    whose type is no prototype."""
    strings, count, words = btf.str_end, btf.count, btf.words.tolist()
    for type_id, at in enumerate(btf.positions(), btf.start_id):
        name, info, value = words[at : at + 3]
        kind = info >> KIND_SHIFT & KIND_MASK
        names, types = name, 0
        if kind in _REFERRING:
            types = value
        elif kind == KIND_ARRAY:
            types = max(words[at + 3 : at + 5])
        elif kind in _ENTRIES and info & VLEN_MASK:
            width, of_name, of_type = _ENTRIES[kind]
            end = at + 3 + width * (info & VLEN_MASK)
            if of_name >= 0:
                names = max(name, *words[at + 3 : end : width])
            if of_type >= 0:
                types = max(words[at + 3 + of_type : end : width])
        if names >= strings:
            what = f"string offset {names}, which is outside the string section"
        elif types >= count:
            what = f"type [{types}], of {count}"
        elif kind == KIND_FUNC and btf.type(value).kind != KIND_FUNC_PROTO:
            what = f"type [{value}] as a function's, which is no prototype"
        else:
            continue
        raise FormatError(f"type [{type_id}] refers to {what}", btf=btf.label)
