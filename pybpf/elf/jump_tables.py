# SPDX-License-Identifier: BSD-2-Clause
"""Jump tables: where a ``switch`` or a computed ``goto`` may go.

Compilers that emit the indirect jump ``gotox`` (LLVM 22, -mcpu=v4) put one table after another
into the section ``.jumptables``, each with a symbol that says its place and size. An entry has
8 bytes: the byte, in the section of the function that jumps, to go on at. The kernel takes each
table as a map of type BPF_MAP_TYPE_INSN_ARRAY (6.19, b4ce5923e780), one for every program.
"""

from __future__ import annotations

import struct

from pybpf.elf.image import STT_SECTION, ElfImage, Section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JUMP_TABLES", "read_jump_tables"]

JUMP_TABLES = ".jumptables"
_ENTRY = 8


def read_jump_tables(image: ElfImage) -> tuple[Section | None, Mapping[int, tuple[int, ...]]]:
    """(the section, byte offset → entries of each table). Raises FormatError."""
    section = image.by_name.get(JUMP_TABLES)
    if section is None or section.size == 0:
        return None, {}
    data = image.data(section)
    order = "<" if image.byteorder == "little" else ">"
    found: dict[int, tuple[int, ...]] = {}
    for symbol in image.symbols:
        if symbol.section != section.number or symbol.type == STT_SECTION:
            continue
        if symbol.value % _ENTRY or symbol.size % _ENTRY or not symbol.size:
            raise image.error(
                f"jump table {symbol.name!r} has {symbol.size} bytes at {symbol.value}; entries "
                f"have {_ENTRY} bytes each.",
                section=JUMP_TABLES,
            )
        if symbol.value + symbol.size > len(data):
            raise image.error(
                f"jump table {symbol.name!r} lies outside its section.", section=JUMP_TABLES
            )
        if symbol.value not in found:  # of symbols that share a place the first counts
            count = symbol.size // _ENTRY
            found[symbol.value] = struct.unpack_from(f"{order}{count}Q", data, symbol.value)
    return section, found
