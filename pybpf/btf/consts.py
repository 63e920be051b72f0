# SPDX-License-Identifier: BSD-2-Clause
"""BTF kinds and masks (include/uapi/linux/btf.h).

The masks are those of kernel 7.3 (7-bit kind, 24-bit vlen); older data has zeros in the added
bits, so the wide masks read every version.
"""

from __future__ import annotations

__all__ = [
    "BTF_MAGIC",
    "BTF_VERSION",
    "ENUM_KINDS",
    "HEADER_LEN",
    "KIND_ARRAY",
    "KIND_CONST",
    "KIND_DATASEC",
    "KIND_DECL_TAG",
    "KIND_ENUM",
    "KIND_ENUM64",
    "KIND_FLOAT",
    "KIND_FUNC",
    "KIND_FUNC_PROTO",
    "KIND_FWD",
    "KIND_INT",
    "KIND_MASK",
    "KIND_NAMES",
    "KIND_PTR",
    "KIND_RESTRICT",
    "KIND_SHIFT",
    "KIND_STRUCT",
    "KIND_TYPEDEF",
    "KIND_TYPE_TAG",
    "KIND_UNION",
    "KIND_VAR",
    "KIND_VOID",
    "KIND_VOLATILE",
    "MODIFIERS",
    "RECORD_WORDS",
    "VLEN_MASK",
    "kind_name",
]

BTF_MAGIC = 0xEB9F
BTF_VERSION = 1
HEADER_LEN = 24  # up to str_len; 32 with layout_off and layout_len (kernel 7.x)

KIND_SHIFT = 24
KIND_MASK = 0x7F
VLEN_MASK = 0xFFFFFF

KIND_VOID = 0
KIND_INT = 1
KIND_PTR = 2
KIND_ARRAY = 3
KIND_STRUCT = 4
KIND_UNION = 5
KIND_ENUM = 6
KIND_FWD = 7
KIND_TYPEDEF = 8
KIND_VOLATILE = 9
KIND_CONST = 10
KIND_RESTRICT = 11
KIND_FUNC = 12
KIND_FUNC_PROTO = 13
KIND_VAR = 14
KIND_DATASEC = 15
KIND_FLOAT = 16
KIND_DECL_TAG = 17
KIND_TYPE_TAG = 18
KIND_ENUM64 = 19

KIND_NAMES: tuple[str, ...] = (
    "void",
    "int",
    "ptr",
    "array",
    "struct",
    "union",
    "enum",
    "fwd",
    "typedef",
    "volatile",
    "const",
    "restrict",
    "func",
    "func_proto",
    "var",
    "datasec",
    "float",
    "decl_tag",
    "type_tag",
    "enum64",
)

# What a reference passes through without changing the data it describes.
MODIFIERS = frozenset((KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_TYPE_TAG))
ENUM_KINDS = frozenset((KIND_ENUM, KIND_ENUM64))

# Kind → (32-bit words after the 3 of struct btf_type, words per vlen entry).
RECORD_WORDS: dict[int, tuple[int, int]] = {
    KIND_INT: (1, 0),
    KIND_PTR: (0, 0),
    KIND_ARRAY: (3, 0),
    KIND_STRUCT: (0, 3),
    KIND_UNION: (0, 3),
    KIND_ENUM: (0, 2),
    KIND_FWD: (0, 0),
    KIND_TYPEDEF: (0, 0),
    KIND_VOLATILE: (0, 0),
    KIND_CONST: (0, 0),
    KIND_RESTRICT: (0, 0),
    KIND_FUNC: (0, 0),
    KIND_FUNC_PROTO: (0, 2),
    KIND_VAR: (1, 0),
    KIND_DATASEC: (0, 3),
    KIND_FLOAT: (0, 0),
    KIND_DECL_TAG: (1, 0),
    KIND_TYPE_TAG: (0, 0),
    KIND_ENUM64: (0, 3),
}


def kind_name(kind: int) -> str:
    """The kernel's name of a kind in lower case, or "kind N" for one that is not known."""
    return KIND_NAMES[kind] if 0 <= kind < len(KIND_NAMES) else f"kind {kind}"
