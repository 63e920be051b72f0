# SPDX-License-Identifier: BSD-2-Clause
"""A Plan as bytes, and back: the bundle that a minimal initramfs carries.

Layout, all numbers little-endian (``pybpf.plan.format`` declares the same with construct, and a
test holds the two together):

    magic        8 bytes  b"pybpf\\x00P\\n"
    version      u16      1
    reserved     u16      0
    entries      u32      number of entries in the payload
    length       u64      bytes of payload, which reach to the end of the file
    sha256       32 bytes of the payload
    payload      entries, each: tag u8, n u32, body

Each distinct value is one entry, and refers to earlier entries by number; the last entry is the
Plan. Tags: "N" None, "T" True, "F" False (n = 0, no body); "i" a 64-bit signed integer (n = 8);
"I" a larger one (n bytes, two's complement); "b" n bytes; "s" n bytes of UTF-8; "t" a tuple of n
entries, by u32 numbers; "d" a dict of n / 2 pairs, likewise; "o" an operation or the Plan: n u32
numbers, of which the first is the class (``CLASSES``) and the others the fields in the order of
FIELDS.

Values are numbered in the order in which they are met, so equal Plans freeze to equal bytes. The
hash finds damage, not forgery: sign the file where that matters. Nothing in it is executed when
it is read; a field of the wrong type, a reference forward or a slot out of range is refused.
"""

from __future__ import annotations

import struct

from pybpf.errors import FormatError
from pybpf.plan import ops as _ops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CLASSES", "ENTRY", "HEADER", "MAGIC", "VERSION", "from_bytes", "sha256", "to_bytes"]

MAGIC = b"pybpf\0P\n"
VERSION = 1
HEADER = struct.Struct("<8sHHIQ32s")
ENTRY = struct.Struct("<BI")
# Only ever appended to: the position is the number in the file.
CLASSES: tuple[type, ...] = (
    _ops.Plan, _ops.BtfLoad, _ops.Lookup, _ops.MapCreate, _ops.MapFill, _ops.MapFreeze,
    _ops.ProgLoad, _ops.LinkCreate, _ops.Pin, _ops.Choose, _ops.When, _ops.KconfigFill,
    _ops.StructOpsFill, _ops.ExclusiveMapCreate, _ops.RequireKernel,
)  # fmt: skip
# Entries may share entries: written out they must not be very many more than are in the file
# (layouts share a lot, hence the first number), nor nested so deep that recursion fails.
_SHARED, _GROWTH, _DEPTH = 1 << 20, 8, 200


def sha256(data: bytes | memoryview) -> bytes:
    """The SHA-256 of ``data``."""
    # hashlib loads OpenSSL, some 3 ms; the interpreter's own implementation is enough here.
    try:
        from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]  # 3.12
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            from hashlib import sha256
    digest: bytes = sha256(data).digest()
    return digest


def to_bytes(plan: _ops.Plan) -> bytes:
    """The frozen form of ``plan``; equal Plans give equal bytes.

    Raises FormatError if a field holds what a Plan may not hold.
    """
    from pybpf.plan import freeze

    return freeze.to_bytes(plan)


# --- reading ----------------------------------------------------------------------------------


def from_bytes(data: bytes | bytearray | memoryview, *, trusted: bool = False) -> _ops.Plan:
    """The Plan in ``data``.

    trusted: the data are known to be whole and to come from where this code does, as in a
    self-running bundle: neither hash nor fields are looked at.
    Raises FormatError: not such a file, cut short, damaged, of a later version, or inconsistent.
    """
    if len(data) < HEADER.size:
        raise FormatError(f"a frozen Plan has at least {HEADER.size} bytes, this has {len(data)}.")
    magic, version, _, count, length, digest = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("this is no frozen Plan: it does not start with its magic.")
    if version != VERSION:
        raise FormatError(
            f"the frozen Plan has version {version}, this pybpf reads version {VERSION}.",
            hint="Freeze it again with the pybpf that is to run it.",
        )
    payload = memoryview(data)[HEADER.size :]
    if length != len(payload):
        raise FormatError(
            f"the frozen Plan says it has {length} bytes of payload, but {len(payload)} are there."
        )
    if not trusted and sha256(payload) != digest:
        raise FormatError("the frozen Plan is damaged: its SHA-256 does not match.")
    try:
        plan = _read(payload, count, trusted)
    except (struct.error, IndexError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise FormatError(f"the frozen Plan is malformed: {error}.") from None
    if not trusted:
        from pybpf.plan.check import check

        check(plan)
    return plan


def _read(payload: memoryview, count: int, trusted: bool) -> _ops.Plan:
    values: list[Any] = []
    sizes: list[int] = []  # of each entry written out, in entries
    depths: list[int] = []
    size_of, depth_of, value_of = sizes.__getitem__, depths.__getitem__, values.__getitem__
    most = _SHARED + _GROWTH * count
    add, entry, unpack = values.append, ENTRY.unpack_from, struct.unpack_from
    pos, end = 0, len(payload)
    for number in range(count):
        tag, n = entry(payload, pos)
        pos += 5
        if tag in (0x74, 0x64, 0x6F):  # t, d, o
            numbers = unpack(f"<{n}I", payload, pos)
            pos += 4 * n
            if not trusted:
                inner = numbers[1:] if tag == 0x6F else numbers
                if inner and max(inner) >= number:
                    raise FormatError(f"entry {number} of the frozen Plan refers forward.")
                sizes.append(1 + sum(map(size_of, inner)))
                depths.append(1 + max(map(depth_of, inner), default=0))
                if sizes[-1] > most or depths[-1] > _DEPTH:
                    raise FormatError(
                        f"entry {number} of the frozen Plan is " + (
                            "larger than its file explains." if sizes[-1] > most
                            else "nested too deep."
                        )
                    )  # fmt: skip
            if tag == 0x6F:
                add(_operation(numbers, values))
            elif tag == 0x74:
                add(tuple(map(value_of, numbers)))
            else:
                items = list(map(value_of, numbers))
                add(dict(zip(items[::2], items[1::2], strict=True)))
            continue
        body = payload[pos : pos + n]
        pos += n
        if pos > end:
            raise FormatError(f"entry {number} of the frozen Plan is cut short.")
        if not trusted:
            sizes.append(1 + (n >> 6))
            depths.append(0)
        if tag == 0x69:  # i
            add(unpack("<q", body)[0])
        elif tag == 0x62:  # b
            add(bytes(body))
        elif tag == 0x73:  # s
            add(str(body, "utf-8", "surrogatepass"))
        elif tag == 0x49:  # I
            add(int.from_bytes(body, "little", signed=True))
        elif tag in _SINGLE and not n:
            add(_SINGLE[tag])
        else:
            raise FormatError(f"entry {number} of the frozen Plan has unknown tag {tag:#x}.")
    if pos != end:
        raise FormatError(f"the frozen Plan has {end - pos} bytes behind its last entry.")
    if not values or type(values[-1]) is not _ops.Plan:
        raise FormatError("the frozen Plan does not end with a Plan.")
    plan: _ops.Plan = values[-1]
    return plan


_SINGLE = {0x4E: None, 0x54: True, 0x46: False}


def _operation(numbers: tuple[int, ...], values: list[Any]) -> Any:
    if not numbers or numbers[0] >= len(CLASSES):
        raise FormatError("the frozen Plan has an operation that this pybpf does not know.")
    kind = CLASSES[numbers[0]]
    made: Any = object.__new__(kind)
    names: tuple[str, ...] = kind.FIELDS  # type: ignore[attr-defined]
    if len(numbers) != len(names) + 1:
        raise FormatError(f"the frozen Plan has a {kind.__name__} of {len(numbers) - 1} fields.")
    for name, number in zip(names, numbers[1:], strict=True):
        setattr(made, name, values[number])
    return made
