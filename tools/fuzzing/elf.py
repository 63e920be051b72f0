# SPDX-License-Identifier: BSD-2-Clause
"""Mutations of ELF objects that keep most of their structure, in either byte order."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tools.fuzzing.binary import (
    EDGES,
    fields,
    mutate_array,
    mutate_btf,
    mutate_bytes,
    mutate_ext,
    mutate_insns,
    mutate_strings,
    poke,
)

__all__ = ["mutate_elf"]

# Widths of the fields of the file header (behind the magic), a section header, a symbol and a
# relocation.
_FILE = (1, 1, 1, 9, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2)
_SECTION = (4, 4, 8, 8, 8, 8, 4, 4, 8, 8)
_SYMBOL = (4, 1, 1, 2, 8, 8)
_RELOCATION = (8, 4, 4)
_SYMTAB, _STRTAB, _NOBITS, _REL = 2, 3, 8, 9
_EXECINSTR, _COMPRESSED = 4, 0x800
_KINDS = (0, 1, 2, 3, 4, 7, 8, 9, 11, 14, 17, 18, 0x60000000, 0x6FFF4C00, 0xFFFFFFFF)
_R_BPF = (0, 1, 2, 3, 4, 10, 11, 255)


class _Section(NamedTuple):
    """head: where its header stands in the file."""

    head: int
    kind: int
    flags: int
    offset: int
    size: int
    name: bytes


def _order(data: bytes) -> str:
    return ">" if data[5:6] == b"\2" else "<"


def _sections(data: bytes) -> list[_Section]:
    """The sections, as far as they can be read; none of a file that is no 64-bit ELF."""
    if len(data) < 64 or data[:5] != b"\x7fELF\2":
        return []
    order = _order(data)
    (start,) = struct.unpack_from(order + "Q", data, 40)
    count, names = struct.unpack_from(order + "HH", data, 60)
    rows = []
    for index in range(count):
        at = start + 64 * index
        if at + 64 > len(data):
            break
        rows.append((at, *struct.unpack_from(order + "IIQQQQ", data, at)))
    strings = data[rows[names][5] :][: rows[names][6]] if names < len(rows) else b""
    return [
        _Section(at, kind, flags, offset, size, strings[name : name + 64].split(b"\0", 1)[0])
        for at, name, kind, flags, _, offset, size in rows[1:]
    ]


def _put(data: bytes, section: _Section, content: bytes) -> bytes:
    """The file with other contents of a section: in place, or moved to the end if it grew."""
    out = bytearray(data)
    offset = section.offset
    if len(content) > section.size:
        out += bytes(-len(out) % 8)
        offset = len(out)
    out[offset : offset + len(content)] = content
    struct.pack_into(_order(data) + "QQ", out, section.head + 24, offset, len(content))
    return bytes(out)


def _records(
    content: bytes, rng: Random, sizes: tuple[int, ...], order: str, also: Callable[..., None]
) -> bytes:
    """Mutate, repeat, drop or copy records; ``also``(out, at, count) changes one on purpose."""
    size = sum(sizes)
    out = bytearray(content)
    count = len(out) // size
    if not count:
        return content
    at = size * rng.randrange(count)
    how = rng.randrange(12)
    if how < 5:
        fields(out, rng, at, sizes, order)
    elif how < 9:
        also(out, at, count)
    elif how == 9:
        other = size * rng.randrange(count)
        out[at : at + size] = out[other : other + size]
    elif how == 10:
        out[at:at] = out[at : at + size]
    else:
        del out[at : at + size]
    return bytes(out)


# --- what is mutated ------------------------------------------------------------------------


def _file_header(data: bytes, sections: list[_Section], rng: Random) -> bytes:
    out = bytearray(data)
    order = _order(data)
    how = rng.randrange(3)
    if how == 0:
        fields(out, rng, 4, _FILE, order)
    elif how == 1:
        # The number of sections, and that of their names, stand in the first header.
        first = sections[0].head - 64
        count = rng.choice((len(sections) + 1, len(sections), rng.choice(EDGES)))
        struct.pack_into(order + "HH", out, 60, 0, 0xFFFF)
        struct.pack_into(order + "Q", out, first + 32, count & (1 << 64) - 1)
        struct.pack_into(order + "I", out, first + 40, rng.randrange(len(sections) + 2))
    else:
        struct.pack_into(order + "H", out, rng.choice((58, 60, 62)), rng.choice(EDGES) & 0xFFFF)
    return bytes(out)


def _section_header(data: bytes, sections: list[_Section], rng: Random) -> bytes:
    out = bytearray(data)
    order = _order(data)
    head, _, flags, _, size, _ = rng.choice(sections)
    other = rng.choice(sections)
    how = rng.randrange(9)
    if how == 0:
        fields(out, rng, head, _SECTION, order)
    elif how == 1:  # exchanged with another's
        out[head : head + 64] = data[other.head : other.head + 64]
        out[other.head : other.head + 64] = data[head : head + 64]
    elif how == 2:
        struct.pack_into(order + "Q", out, head + 8, flags ^ rng.choice((_COMPRESSED, 1, 2, 4)))
    elif how == 3:
        struct.pack_into(order + "Q", out, head + 56, rng.choice((0, 1, 8, 24, *EDGES)))
    elif how == 4:  # on top of another one
        struct.pack_into(order + "Q", out, head + 24, max(0, other.offset + rng.choice((-8, 0, 8))))
    elif how == 5:
        struct.pack_into(order + "Q", out, head + 32, rng.choice((0, size * 2, *EDGES)))
    elif how == 6:
        struct.pack_into(order + "I", out, head + 4, rng.choice(_KINDS))
    elif how == 7:
        at = head + rng.choice((40, 44))
        struct.pack_into(order + "I", out, at, rng.randrange(len(sections) + 3))
    else:  # of the same name as another one
        out[head : head + 4] = data[other.head : other.head + 4]
    return bytes(out)


def _contents(
    wanted: Callable[[_Section], object], mutate: Callable[[bytes, Random], bytes]
) -> _Mutator:
    """A mutator of the contents of one of the sections that are ``wanted``."""

    def mutator(data: bytes, sections: list[_Section], rng: Random) -> bytes:
        rows = [s for s in sections if wanted(s) and s.kind != _NOBITS]
        if not rows:
            return _section_header(data, sections, rng)
        section = rng.choice(rows)
        content = data[section.offset : section.offset + section.size]
        if len(content) != section.size:
            return mutate_bytes(data, rng)
        return _put(data, section, mutate(content, rng))

    return mutator


def _symbols(data: bytes, sections: list[_Section], rng: Random) -> bytes:
    order = _order(data)

    def aim(out: bytearray, at: int, count: int) -> None:
        how = rng.randrange(4)
        if how == 0:  # another's name
            other = 24 * rng.randrange(count)
            out[at : at + 4] = out[other : other + 4]
        elif how == 1:
            out[at + 4] = rng.choice((0, 1, 2)) << 4 | rng.choice((0, 1, 2, 3, 4, 6, 10))
        elif how == 2:
            section = rng.choice((rng.randrange(len(sections) + 2), 0, 0xFFF1, 0xFFF2, 0xFFFF))
            struct.pack_into(order + "H", out, at + 6, section)
        else:
            value = rng.choice((0, 4, 8, rng.choice(sections).size, rng.choice(EDGES)))
            struct.pack_into(order + "Q", out, at + rng.choice((8, 16)), value)

    change = _contents(
        lambda s: s.kind == _SYMTAB,
        lambda content, rng: _records(content, rng, _SYMBOL, order, aim),
    )
    return change(data, sections, rng)


def _relocations(data: bytes, sections: list[_Section], rng: Random) -> bytes:
    order = _order(data)
    symbols = sum(s.size // 24 for s in sections if s.kind == _SYMTAB)
    # In a big-endian r_info the symbol comes first.
    of_type, of_symbol = (8, 12) if order == "<" else (12, 8)

    def aim(out: bytearray, at: int, count: int) -> None:
        how = rng.randrange(3)
        if how == 0:
            struct.pack_into(order + "I", out, at + of_symbol, rng.randrange(symbols + 2))
        elif how == 1:
            struct.pack_into(order + "I", out, at + of_type, rng.choice(_R_BPF))
        else:
            poke(out, rng, at, 8, order)

    change = _contents(
        lambda s: s.kind == _REL,
        lambda content, rng: _records(content, rng, _RELOCATION, order, aim),
    )
    return change(data, sections, rng)


_Mutator = Callable[[bytes, list[_Section], Random], bytes]
# How often each is chosen.
_MUTATORS: dict[_Mutator, int] = {
    _file_header: 1,
    _section_header: 3,
    _symbols: 4,
    _relocations: 4,
    _contents(lambda s: s.kind == _STRTAB, mutate_strings): 2,
    _contents(lambda s: s.flags & _EXECINSTR, mutate_insns): 3,
    _contents(lambda s: s.name == b".BTF.ext", mutate_ext): 4,
    _contents(lambda s: s.name == b".BTF", mutate_btf): 4,
    _contents(lambda s: s.name == b".BTF", mutate_array): 3,
    _contents(lambda s: True, mutate_bytes): 2,
    lambda data, _, rng: mutate_bytes(data, rng): 1,
}


def mutate_elf(data: bytes, rng: Random) -> bytes:
    """Mutate one to four things of an object file."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        sections = _sections(data)
        if sections:
            (mutate,) = rng.choices(list(_MUTATORS), list(_MUTATORS.values()))
            data = mutate(data, sections, rng)
        else:
            data = mutate_bytes(data, rng)
    return data
