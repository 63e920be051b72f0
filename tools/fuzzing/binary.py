# SPDX-License-Identifier: BSD-2-Clause
"""Mutations of BTF, BTF.ext, instructions and frozen Plans that keep most of their structure.

Each takes the bytes and a random.Random, and gives bytes. They read leniently, in either byte
order: what cannot be taken apart any more is mutated as plain bytes.
"""

from __future__ import annotations

import hashlib
import struct
from random import Random
from typing import Literal

from pybpf.plan.frozen import HEADER, MAGIC, VERSION

__all__ = [
    "EDGES",
    "fields",
    "mutate_array",
    "mutate_btf",
    "mutate_bytes",
    "mutate_ext",
    "mutate_insns",
    "mutate_plan",
    "mutate_strings",
    "poke",
]

EDGES = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 24, 31, 32, 63, 64, 127, 128, 255, 256, 511, 4095, 4096, 0x7FFF,
    0x8000, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF, 1 << 32,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_WORDS = (
    b".maps", b"maps", b"license", b"version", b".BTF", b".BTF.ext", b".text", b".data", b".rodata",
    b".bss", b".kconfig", b".ksyms", b".struct_ops", b".struct_ops.link", b".addr_space.1",
    b"xdp", b"tc", b"lsm/bpf", b"kprobe/x", b"?tp_btf/", b"fentry/", b"freplace/f", b"iter/task",
    b"uprobe//bin/sh:f", b"struct_ops/x", b"syscall", b"cgroup/skb", b"raw_tp", b"usdt/", b"/",
    b"0:1:2", b"0:999999", b"0:" * 70 + b"0", b"", b"0", b"-1:2", b"0:-1", b"a:b", b"\xff\xfe",
    b"a" * 300, b"___x", b"task_struct___a", b"decl_tag:contains", b"values", b"key", b"value",
    b"type", b"max_entries", b"map_flags", b"pinning", b"CONFIG_HZ", b"LINUX_KERNEL_VERSION",
)  # fmt: skip


def _value(rng: Random, bits: int, old: int) -> int:
    mask = (1 << bits) - 1
    how = rng.randrange(5)
    if how == 0:
        return rng.choice(EDGES) & mask
    if how == 1:
        return (old + rng.choice((-8, -4, -1, 1, 2, 4, 8, 16, 64))) & mask
    if how == 2:
        return old ^ (1 << rng.randrange(bits))
    if how == 3:
        return rng.getrandbits(bits)
    return rng.randrange(64) & mask


def poke(data: bytearray, rng: Random, at: int, size: int, order: str = "<") -> None:
    """Change the number of ``size`` bytes at ``at``; order: "<" or ">"."""
    if at >= 0 and at + size <= len(data):
        byteorder: Literal["little", "big"] = "little" if order == "<" else "big"
        old = int.from_bytes(data[at : at + size], byteorder)
        data[at : at + size] = _value(rng, size * 8, old).to_bytes(size, byteorder)


def fields(data: bytearray, rng: Random, at: int, sizes: tuple[int, ...], order: str = "<") -> None:
    """Change one of the numbers that follow each other at ``at``."""
    index = rng.randrange(len(sizes))
    poke(data, rng, at + sum(sizes[:index]), sizes[index], order)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, overwrite, insert, remove, repeat or cut bytes."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out) + 1)
        how = rng.randrange(6)
        if how == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            poke(out, rng, at & ~3, rng.choice((1, 2, 4, 8)))
        elif how == 2:
            out[at:at] = rng.choice(_WORDS)
        elif how == 3:
            del out[at : at + rng.randrange(1, 64)]
        elif how == 4:
            piece = out[at : at + rng.randrange(1, 256)]
            out[at:at] = piece
        elif how == 5 and rng.randrange(4) == 0:
            del out[at:]
    return bytes(out)


def mutate_strings(data: bytes, rng: Random) -> bytes:
    """Overwrite something in a string table; its length stays."""
    out = bytearray(data)
    if len(out) < 2:
        return data
    at = rng.randrange(1, len(out))
    how = rng.randrange(8)
    if how < 3:
        word = rng.choice(_WORDS)
        at = out.rfind(b"\0", 0, at) + 1
        out[at : at + len(word)] = word[: len(out) - at]
    elif how < 6:
        out[at] = rng.choice((0, 0xFF, 0x2F, 0x3A, 0x20, 0x41, 0x0A))
    elif how == 6:
        out[-1:] = b"x"
    else:
        out = out.replace(b"\0", b"x")  # no name ends
    return bytes(out)


# --- BTF ------------------------------------------------------------------------------------

# What follows the three words of a type, a vlen of times: sizes of the fields of an element.
_TAIL = {1: (4,), 3: (4, 4, 4), 4: (4, 4, 4), 5: (4, 4, 4), 6: (4, 4), 13: (4, 4), 14: (4,),
         15: (4, 4, 4), 17: (4,), 19: (4, 4, 4)}  # fmt: skip
_ONCE = (1, 3, 14, 17)
_ARRAY = 3


def _order(data: bytes) -> str:
    return ">" if data[:2] == b"\xeb\x9f" else "<"


def _types(data: bytes) -> list[tuple[int, int, int]]:
    """(offset, kind, number of elements) of the types of BTF, as far as they can be read."""
    if len(data) < 24:
        return []
    order = _order(data)
    header, start, length = struct.unpack_from(order + "III", data, 4)
    at, end, found = header + start, min(header + start + length, len(data)), []
    while at + 12 <= end:
        info = struct.unpack_from(order + "I", data, at + 4)[0]
        kind = info >> 24 & 31
        count = 1 if kind in _ONCE else info & 0xFFFF if kind in _TAIL else 0
        found.append((at, kind, count))
        at += 12 + count * sum(_TAIL.get(kind, ()))
    return found


def mutate_array(data: bytes, rng: Random) -> bytes:
    """Change the length of an array: in an object's BTF most are the numbers of a map."""
    found = [at for at, kind, _ in _types(data) if kind == _ARRAY]
    if not found:
        return mutate_btf(data, rng)
    out = bytearray(data)
    at = rng.choice(found) + 12 + 8
    if at + 4 <= len(out):
        length = rng.choice((rng.randrange(40), rng.choice(EDGES) & 0xFFFFFFFF))
        struct.pack_into(_order(data) + "I", out, at, length)
    return bytes(out)


def mutate_btf(data: bytes, rng: Random) -> bytes:
    """Mutate BTF: header, type records, their elements, strings; repeat or drop a type."""
    out = bytearray(data)
    how = rng.randrange(12)
    types = _types(data)
    order = _order(data)
    if how == 0 or not types:
        fields(out, rng, 0, (2, 1, 1, 4, 4, 4, 4, 4), order)
        return bytes(out)
    number = struct.Struct(order + "I")
    header, _start, length, string_at, string_len = struct.unpack_from(order + "IIIII", data, 4)
    if how == 1:
        first = header + string_at
        out[first : first + string_len] = mutate_strings(
            bytes(out[first : first + string_len]), rng
        )
        return bytes(out)
    at, kind, count = rng.choice(types)
    size = 12 + count * sum(_TAIL.get(kind, ()))
    if how < 5:
        fields(out, rng, at, (4, 4, 4), order)
    elif how == 5:
        # A reference to a near or the same type: loops, wrong kinds.
        near = types.index((at, kind, count)) + 1 + rng.choice((-2, -1, 0, 0, 1, 2))
        number.pack_into(out, at + 8, near & 0xFFFFFFFF)
    elif how == 6:
        # Another kind, everything else as it is.
        (info,) = number.unpack_from(out, at + 4)
        kinds = rng.randrange(33) << 24 | rng.choice((0, 1 << 31))
        number.pack_into(out, at + 4, info & 0xFFFFFF | kinds)
    elif how < 10:
        if count:
            sizes = _TAIL[kind]
            where = at + 12 + rng.randrange(count) * sum(sizes)
            if rng.randrange(2):
                fields(out, rng, where, sizes, order)
            elif where + 8 <= len(out):
                number.pack_into(out, where + 4, rng.randrange(len(types) + 2))
    else:
        # Repeat or drop a whole type: every later id moves.
        if how == 10:
            copies = bytes(out[at : at + size]) * rng.choice((1, 2, 100))
            out[at:at] = copies
            grown = len(copies)
        else:
            del out[at : at + size]
            grown = -size
        if len(out) >= 20:  # a header that is said to be short may have gone with the type
            number.pack_into(out, 12, (length + grown) & 0xFFFFFFFF)
            number.pack_into(out, 16, (string_at + grown) & 0xFFFFFFFF)
    return bytes(out)


def mutate_ext(data: bytes, rng: Random) -> bytes:
    """Mutate BTF.ext: header, heads of sections, records, their size."""
    out = bytearray(data)
    order = _order(data)
    if len(out) < 32 or rng.randrange(8) == 0:
        fields(out, rng, 0, (2, 1, 1, 4) + (4,) * 6, order)
        return bytes(out)
    number = struct.Struct(order + "I")
    (header,) = number.unpack_from(out, 4)
    offset, length = struct.unpack_from(order + "II", out, 8 + 8 * rng.randrange(3))
    start, end = header + offset, min(header + offset + length, len(out))
    if start + 16 > end:
        return mutate_bytes(data, rng)
    (size,) = number.unpack_from(out, start)
    at, rows = start + 4, []
    heads = []
    while at + 8 <= end and 0 < size < 1 << 16:
        (count,) = number.unpack_from(out, at + 4)
        heads.append(at)
        at += 8
        rows += [at + i * size for i in range(min(count, (end - at) // size))]
        at += count * size
    if heads and rng.randrange(6) == 0:
        fields(out, rng, rng.choice(heads), (4, 4), order)
    elif rows and rng.randrange(8):
        row = rng.choice(rows)
        if rng.randrange(3) == 0:  # a copy of another record: duplicates, out of order
            other = rng.choice(rows)
            out[row : row + size] = out[other : other + size]
        else:
            fields(out, rng, row, (4,) * max(1, min(size // 4, 4)), order)
    elif rng.randrange(2):
        number.pack_into(out, start, rng.choice((0, 4, 8, 12, 16, 20, 24, 32, 64, 1 << 31)))
    else:
        poke(out, rng, start, 4, order)
    return bytes(out)


# --- instructions ---------------------------------------------------------------------------


def mutate_insns(data: bytes, rng: Random) -> bytes:
    """Mutate instructions: their fields, order and number."""
    out = bytearray(data)
    count = len(out) // 8
    if not count:
        return mutate_bytes(data, rng)
    at = 8 * rng.randrange(count)
    how = rng.randrange(8)
    if how < 4:
        fields(out, rng, at, (1, 1, 2, 4))
    elif how == 4:
        out[at] = rng.choice((0x18, 0x85, 0x8D, 0x05, 0x06, 0xE5, 0x95, 0x61, 0x79, 0x7B, 0xB7,
                              0xDB, 0xC3, 0xDC, 0xD7, 0xBC, 0x00))  # fmt: skip
    elif how == 5:
        other = 8 * rng.randrange(count)
        out[at : at + 8] = out[other : other + 8]
    elif how == 6:
        del out[at : at + 8]
    else:
        out[at:at] = out[at : at + 8 * rng.randrange(1, 9)]
    return bytes(out)


# --- frozen Plans ---------------------------------------------------------------------------

_ENTRY = struct.Struct("<BI")
_LISTS = b"tdo"


def _entries(payload: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 5 <= len(payload):
        tag, count = _ENTRY.unpack_from(payload, at)
        size = count * (4 if tag in _LISTS else 1)
        found.append((tag, payload[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


def mutate_plan(data: bytes, rng: Random) -> bytes:
    """Mutate entries of a frozen Plan and give it the right length and hash again."""
    if len(data) < HEADER.size or data[:8] != MAGIC or rng.randrange(50) == 0:
        return mutate_bytes(data, rng)
    entries = _entries(data[HEADER.size :])
    if not entries:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        index = rng.randrange(len(entries))
        if rng.randrange(4) == 0:
            index = len(entries) - 1 - rng.randrange(min(len(entries), 12))
        tag, body = entries[index]
        how = rng.randrange(8)
        if tag in _LISTS and len(body) >= 4 and how < 6:
            numbers = bytearray(body)
            at = 4 * rng.randrange(len(body) // 4)
            if how < 4:
                struct.pack_into("<I", numbers, at, rng.randrange(max(index, 1)))
            elif how == 4:
                poke(numbers, rng, at, 4)
            else:
                numbers[at:at] = numbers[at : at + 4] * rng.choice((1, 2))
            entries[index] = (tag, bytes(numbers))
        elif tag == 0x69 and how < 6:
            number = bytearray(body)
            poke(number, rng, 0, 8)
            entries[index] = (tag, bytes(number))
        elif how < 6:
            entries[index] = (tag, mutate_bytes(body, rng))
        elif how == 6:
            entries[index] = (rng.choice(b"NTFiIbstdo"), body)
        else:
            entries.insert(index, rng.choice(entries[: index + 1]))
    payload = b"".join(
        _ENTRY.pack(tag, len(body) // (4 if tag in _LISTS else 1)) + body for tag, body in entries
    )
    digest = hashlib.sha256(payload).digest()
    return HEADER.pack(MAGIC, VERSION, 0, len(entries), len(payload), digest) + payload
