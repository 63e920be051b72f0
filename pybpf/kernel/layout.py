# SPDX-License-Identifier: BSD-2-Clause
"""Values of C types as Python values, told by layout tuples.

A layout is plain data, so that a Plan can carry it without BTF:

    ("int", size, signed)                 int
    ("bool", size)                        bool
    ("float", size)                       float (4 or 8 bytes; other sizes: bytes)
    ("enum", size, signed, ((name, value), …))  int when decoded; a name may be encoded
    ("ptr", size)                         int
    ("char", size)                        int; an array of them: bytes (see ``cstr``)
    ("array", layout, n, stride)          list
    ("struct", size, ((name, offset, layout[, bit_offset, bit_size]), …))  dict
    ("union", size, (…same…))             dict of every member's reading of the same bytes
    ("opaque", size)                      bytes

Sizes, offsets and strides are bytes. bit_offset counts from the field's byte offset as BTF
counts bits: from the least significant bit on little-endian machines, from the most significant
one on big-endian machines. Members without a name are anonymous structs or unions: their members
are put into the outer dict.
"""

from __future__ import annotations

import struct
import sys

from pybpf.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Layout = tuple[Any, ...]
    Buffer = bytes | bytearray | memoryview

__all__ = ["cstr", "decode", "encode", "encode_sized", "named", "size_of"]

_FLOATS = {4: "f", 8: "d"}


def cstr(data: Buffer) -> str:
    """The text before the first NUL, undecodable bytes as surrogates."""
    return bytes(data).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def size_of(layout: Layout) -> int:
    """Bytes that a value of ``layout`` takes."""
    if layout[0] == "array":
        size: int = layout[2] * layout[3]
        return size
    return int(layout[1])


def decode(layout: Layout, data: Buffer, offset: int = 0, byteorder: str = "little") -> Any:
    """The value at ``data[offset:]``. Raises UsageError if the data are too short."""
    if offset < 0 or offset + size_of(layout) > len(data):
        raise UsageError(
            f"a value of {size_of(layout)} bytes at {offset} does not fit into {len(data)} bytes"
        )
    return _decode(layout, memoryview(data), offset, byteorder)


def _decode(layout: Layout, data: memoryview, offset: int, byteorder: str) -> Any:
    kind = layout[0]
    if kind in ("int", "enum"):
        part = data[offset : offset + layout[1]]
        return int.from_bytes(part, _literal(byteorder), signed=layout[2])
    if kind in ("ptr", "char", "bool"):
        number = int.from_bytes(data[offset : offset + layout[1]], _literal(byteorder))
        return bool(number) if kind == "bool" else number
    if kind in ("struct", "union"):
        out: dict[str, Any] = {}
        for member in layout[2]:
            name, at, inner = member[0], offset + member[1], member[2]
            value: Any
            if len(member) > 3 and member[4]:
                value = _bits(inner, data, at, member[3], member[4], byteorder)
            else:
                value = _decode(inner, data, at, byteorder)
            if name:
                out[name] = value
            else:
                out.update(value)
        return out
    if kind == "array":
        inner, count, stride = layout[1:4]
        if inner[0] == "char":
            return bytes(data[offset : offset + count * stride])
        return [_decode(inner, data, offset + i * stride, byteorder) for i in range(count)]
    if kind == "float" and layout[1] in _FLOATS:
        return struct.unpack_from(_order(byteorder) + _FLOATS[layout[1]], data, offset)[0]
    return bytes(data[offset : offset + layout[1]])


def _literal(byteorder: str) -> Literal["little", "big"]:
    return "little" if byteorder == "little" else "big"


def _order(byteorder: str) -> str:
    return "<" if byteorder == "little" else ">"


def _span(inner: Layout, bit_offset: int, bit_size: int, byteorder: str) -> tuple[int, int]:
    """(bytes that hold the bit-field, shift from their least significant bit)."""
    width = (bit_offset + bit_size + 7) // 8
    if byteorder == "little":
        return width, bit_offset
    return width, width * 8 - bit_offset - bit_size


def _bits(
    inner: Layout, data: memoryview, at: int, bit_offset: int, bit_size: int, byteorder: str
) -> int | bool:
    width, shift = _span(inner, bit_offset, bit_size, byteorder)
    number = int.from_bytes(data[at : at + width], _literal(byteorder)) >> shift
    number &= (1 << bit_size) - 1
    if inner[0] == "bool":
        return bool(number)
    if inner[0] in ("int", "enum") and inner[2] and number >> bit_size - 1:
        number -= 1 << bit_size
    return number


def encode(layout: Layout, value: Any, byteorder: str = "little") -> bytes:
    """The bytes of ``value``; bytes of the right length are taken as they are.

    Missing struct members are zero; unknown ones, numbers that do not fit and strings that are
    too long raise UsageError.
    """
    out = bytearray(size_of(layout))
    _encode(layout, value, out, 0, byteorder)
    return bytes(out)


def encode_sized(value: Any, size: int, layout: Layout | None) -> bytes:
    """The ``size`` bytes of a key, value or variable of this machine; without a layout they are
    bytes, or an int where size is 1, 2, 4 or 8. Raises UsageError."""
    if layout is not None:
        data = encode(layout, value, sys.byteorder)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    elif isinstance(value, int) and size in (1, 2, 4, 8):
        try:
            data = value.to_bytes(size, sys.byteorder, signed=value < 0)
        except OverflowError:
            raise UsageError(f"{value} does not fit into {size} bytes") from None
    else:
        raise UsageError(f"{size} bytes are needed, not {type(value).__name__}")
    if len(data) != size:
        raise UsageError(f"{len(data)} bytes given where {size} are needed")
    return data


def _encode(layout: Layout, value: Any, out: bytearray, offset: int, byteorder: str) -> None:
    kind, size = layout[0], size_of(layout)
    if isinstance(value, (bytes, bytearray, memoryview)):
        chars = kind == "array" and layout[1][0] == "char"
        if len(value) > size or (len(value) < size and not chars):
            raise UsageError(f"{len(value)} bytes given where {size} are needed")
        out[offset : offset + len(value)] = value
        return
    if kind in ("int", "enum", "ptr", "char", "bool"):
        signed = layout[2] if kind in ("int", "enum") else False
        number = _number(layout, value)
        try:
            out[offset : offset + size] = number.to_bytes(size, _literal(byteorder), signed=signed)
        except OverflowError:
            raise UsageError(
                f"{number} does not fit into {'a signed' if signed else 'an unsigned'} "
                f"integer of {size} bytes"
            ) from None
        return
    if kind in ("struct", "union"):
        _encode_members(layout, value, out, offset, byteorder)
        return
    if kind == "array":
        _encode_array(layout, value, out, offset, byteorder)
        return
    if kind == "float" and size in _FLOATS and isinstance(value, (int, float)):
        struct.pack_into(_order(byteorder) + _FLOATS[size], out, offset, value)
        return
    raise UsageError(f"a value of kind {kind} takes {size} bytes, not {type(value).__name__}")


def _number(layout: Layout, value: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str) and layout[0] == "enum":
        for name, number in layout[3]:
            if name == value:
                return int(number)
        known = ", ".join(name for name, _ in layout[3])
        raise UsageError(f"the enum has no {value!r}; it has: {known}")
    if isinstance(value, str) and layout[0] == "char" and len(value) == 1:
        return ord(value)
    raise UsageError(f"an integer is needed, not {type(value).__name__}")


def _encode_array(layout: Layout, value: Any, out: bytearray, offset: int, byteorder: str) -> None:
    inner, count, stride = layout[1:4]
    if isinstance(value, str) and inner[0] == "char":
        _encode(layout, value.encode("utf-8", "surrogateescape"), out, offset, byteorder)
        return
    if not isinstance(value, (list, tuple)) or len(value) > count:
        raise UsageError(f"a sequence of at most {count} values is needed")
    for i, item in enumerate(value):
        try:
            _encode(inner, item, out, offset + i * stride, byteorder)
        except UsageError as error:
            raise _inside(error, f"[{i}]")  # noqa: B904


def _encode_members(
    layout: Layout, value: Any, out: bytearray, offset: int, byteorder: str
) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"a dict of members is needed, not {type(value).__name__}")
    unknown = set(value) - _names(layout)
    if unknown:
        raise UsageError(
            f"there is no member {', '.join(map(str, sorted(unknown, key=str)))}; there are: "
            f"{', '.join(sorted(_names(layout)))}"
        )
    for member in layout[2]:
        name, at, inner = member[0], offset + member[1], member[2]
        if not name:
            mine = {k: v for k, v in value.items() if k in _names(inner)}
            if mine:
                _encode(inner, mine, out, at, byteorder)
        elif name in value:
            try:
                if len(member) > 3 and member[4]:
                    _encode_bits(member, value[name], out, at, byteorder)
                else:
                    _encode(inner, value[name], out, at, byteorder)
            except UsageError as error:
                raise _inside(error, f".{name}")  # noqa: B904


def _inside(error: UsageError, step: str) -> UsageError:
    """The error, with one step more of the way to it from the outermost value (``member``)."""
    error.where["member"] = step + str(error.where.get("member", ""))
    return error


def named(error: UsageError, what: str, name: str = "") -> UsageError:
    """The error of a value that is called ``name`` there: "value.in.b" for its member in.b."""
    error.where = {what: name + str(error.where.pop("member", "")), **error.where}
    return error


def _encode_bits(
    member: tuple[Any, ...], value: Any, out: bytearray, at: int, byteorder: str
) -> None:
    _, _, inner, bit_offset, bit_size = member
    number = _number(inner, value)
    signed = inner[0] in ("int", "enum") and inner[2]
    low, high = (-(1 << bit_size - 1), 1 << bit_size - 1) if signed else (0, 1 << bit_size)
    if not low <= number < high:
        raise UsageError(f"{number} does not fit into its {bit_size} bits")
    width, shift = _span(inner, bit_offset, bit_size, byteorder)
    mask = (1 << bit_size) - 1
    old = int.from_bytes(out[at : at + width], _literal(byteorder))
    new = old & ~(mask << shift) | (number & mask) << shift
    out[at : at + width] = new.to_bytes(width, _literal(byteorder))


def _names(layout: Layout) -> set[str]:
    found: set[str] = set()
    for member in layout[2]:
        if member[0]:
            found.add(member[0])
        else:
            found |= _names(member[2])
    return found
