# SPDX-License-Identifier: BSD-2-Clause
"""An ELF relocatable of the BPF machine: sections, symbols and relocations, validated.

pyelftools' structures read the header and the section table (its ELFFile would import what reads
DWARF, too: half of the time a short command takes); symbols and relocations, of which there can
be thousands, are unpacked in bulk. Nothing is decompressed and no section of size is allocated
that the file does not hold, so a hostile file costs no more than its own length. Every defect
is a FormatError that names the section or symbol.
"""

from __future__ import annotations

import io
import struct
import sys
from array import array

try:
    from elftools.common.utils import struct_parse
    from elftools.elf.structs import ELFStructs
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "reading ELF objects needs pyelftools. Install it (python3-pyelftools), or run a bundle, "
        "which needs it only where it is made.",
        name=missing.name,
    ) from None

from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = [
    "SHF_EXECINSTR",
    "SHN_UNDEF",
    "SHT_NOBITS",
    "SHT_PROGBITS",
    "STB_GLOBAL",
    "STB_LOCAL",
    "STB_WEAK",
    "STT_FUNC",
    "STT_NOTYPE",
    "STT_OBJECT",
    "STT_SECTION",
    "ElfImage",
    "Relocation",
    "Section",
    "Symbol",
]

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 1, 2, 3, 4, 8, 9
SHF_EXECINSTR = 0x4
SHN_UNDEF, SHN_LORESERVE, SHN_XINDEX = 0, 0xFF00, 0xFFFF
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION = 0, 1, 2, 3
STV_INTERNAL, STV_HIDDEN = 1, 2
EM_NONE, EM_BPF = 0, 247
ET_REL = 1

_SECTION_TYPES = {
    "SHT_PROGBITS": SHT_PROGBITS,
    "SHT_SYMTAB": SHT_SYMTAB,
    "SHT_STRTAB": SHT_STRTAB,
    "SHT_RELA": SHT_RELA,
    "SHT_NOBITS": SHT_NOBITS,
    "SHT_REL": SHT_REL,
}
# What debuggers and linkers read; damage in it is nothing to us, nor to libbpf.
_UNREAD = (".debug_", ".rel.debug_", ".rel.BTF", ".llvm_")
_WANTED = "Give the object that clang -target bpf wrote."
_MAX_BSS = 1 << 32  # a map's value size is a u32
_MAX_ZEROES = 1 << 24


class Section(NamedTuple):
    """One section header. Sizes and offsets in bytes; ``data`` of ElfImage gives the bytes."""

    number: int
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    entsize: int

    @property
    def executable(self) -> bool:
        """Whether it holds instructions."""
        return bool(self.flags & SHF_EXECINSTR)


class Symbol(NamedTuple):
    """One symbol. value and size in bytes; section: a header index (0: undefined)."""

    number: int
    name: str
    value: int
    size: int
    type: int
    bind: int
    visibility: int
    section: int

    @property
    def undefined(self) -> bool:
        """Whether it is an extern: a named reference to something outside the object."""
        return (
            self.section == SHN_UNDEF
            and self.bind in (STB_GLOBAL, STB_WEAK)
            and self.type == STT_NOTYPE
            and bool(self.name)
        )

    @property
    def hidden(self) -> bool:
        """Whether its visibility is restricted to the object (hidden or internal)."""
        return self.visibility in (STV_HIDDEN, STV_INTERNAL)


class Relocation(NamedTuple):
    """One entry of a SHT_REL section: byte offset in its target section, symbol, R_BPF_* type."""

    offset: int
    symbol: Symbol
    type: int


class ElfImage:
    """A BPF relocatable held in memory.

    byteorder: "little" or "big"; sections: by index, the null section included; symbols: by
    index. Raises FormatError for anything that is not a 64-bit BPF relocatable.
    """

    def __init__(self, data: bytes, *, name: str) -> None:
        self.raw = data
        self.name = name
        if data[:4] != b"\x7fELF":
            raise FormatError(
                "this is no ELF file (wrong magic).",
                hint=_WANTED,
                object=name,
            )
        try:
            self._read_header()
        except FormatError:
            raise
        except Exception as exc:
            # pyelftools raises its own errors, construct's, and bare KeyError, TypeError or
            # AssertionError on damaged input; what reaches the user is ours, whatever it was.
            raise FormatError(
                f"the ELF header or section table is damaged ({type(exc).__name__}: {exc}).",
                object=name,
            ) from exc
        self.symbols = self._read_symbols()
        self.by_name: dict[str, Section] = {}
        for section in self.sections[1:]:
            self.by_name.setdefault(section.name, section)

    def error(self, message: str, *, hint: str | None = None, **where: object) -> FormatError:
        """A FormatError that names this object."""
        return FormatError(message, hint=hint, object=self.name, **where)

    def _read_header(self) -> None:
        if len(self.raw) < 64:
            raise self.error(f"the ELF header is damaged: {len(self.raw)} bytes are too few.")
        elf_class, encoding, version = self.raw[4:7]
        if version != 1:
            raise self.error(f"its ELF version is {version}, not 1.")
        if encoding not in (1, 2):
            raise self.error(f"its byte order is {encoding}, neither little (1) nor big (2).")
        self.byteorder = "little" if encoding == 1 else "big"
        self._order = "<" if encoding == 1 else ">"
        if elf_class != 2:
            raise self.error("a 32-bit ELF; BPF objects are 64-bit.")
        etype, machine = struct.unpack_from(self._order + "HH", self.raw, 16)
        # clang before 3.7's official machine number wrote EM_NONE
        if machine not in (EM_NONE, EM_BPF):
            raise self.error(f"ELF machine {machine} is not BPF (247).", hint=_WANTED)
        if etype != ET_REL:
            raise self.error(f"ELF type {etype} is no relocatable (1).", hint=_WANTED)
        structs = ELFStructs(little_endian=encoding == 1, elfclass=64)
        structs.create_basic_structs()
        stream = io.BytesIO(self.raw)
        header = struct_parse(structs.Elf_Ehdr, stream, 0)
        structs.create_advanced_structs(
            header["e_type"], header["e_machine"], header["e_ident"]["EI_OSABI"]
        )
        # e_shentsize is not looked at, as libelf does not: a header of ELF64 has 64 bytes.
        start = header["e_shoff"]
        count, names = header["e_shnum"], header["e_shstrndx"]
        if start == 0:
            raise self.error("the file has no sections.")
        if start + 64 > len(self.raw):
            raise self.error(
                f"the section table ({count} headers at byte {start}) lies outside the file of "
                f"{len(self.raw)} bytes."
            )
        first = struct_parse(structs.Elf_Shdr, stream, start)
        # Numbers that do not fit stand in the first header (ELF gABI, "Sections").
        count = count or first["sh_size"]
        if names == SHN_XINDEX:
            names = first["sh_link"]
        if start + count * 64 > len(self.raw):
            raise self.error(
                f"the section table ({count} headers at byte {start}) lies outside the file of "
                f"{len(self.raw)} bytes."
            )
        if not 0 < names < count:
            raise self.error(f"section {names} of {count} is to hold the sections' names.")
        heads = [struct_parse(structs.Elf_Shdr, stream, start + 64 * i) for i in range(count)]
        table = heads[names]
        offset, size = table["sh_offset"], table["sh_size"]
        if offset + size > len(self.raw):
            raise self.error("the table of section names lies outside the file.")
        strings = memoryview(self.raw)[offset : offset + size]
        self.sections = [Section(0, "", 0, 0, 0, 0, 0, 0, 0)]
        self.sections += [self._section(i, heads[i], strings) for i in range(1, count)]
        # String tables may be one; a file whose sections all lie on each other is an attack on
        # the time that reading it takes.
        whole = sum(s.size for s in self.sections if s.type != SHT_NOBITS)
        if whole > 4 * len(self.raw):
            raise self.error(
                f"its {count} sections overlap: they claim {whole} bytes of a file of "
                f"{len(self.raw)}."
            )

    def _section(self, index: int, head: Any, strings: memoryview) -> Section:
        text = self._string(strings, head["sh_name"], what=f"name of section {index}")
        size, offset, stype = head["sh_size"], head["sh_offset"], head["sh_type"]
        if not isinstance(stype, int):  # pyelftools gives known types as names
            stype = _SECTION_TYPES.get(stype, -1)
        if stype == SHT_NOBITS:
            if size >= _MAX_BSS:
                raise self.error(f"section {text!r} claims {size} bytes.")
        elif offset + size > len(self.raw):
            if text.startswith(_UNREAD):
                return Section(index, text, stype, 0, 0, 0, 0, 0, 0)
            raise self.error(
                f"section {text!r} ({size} bytes at {offset}) lies outside the file of "
                f"{len(self.raw)} bytes."
            )
        return Section(
            index, text, stype, head["sh_flags"], offset, size, head["sh_link"], head["sh_info"],
            head["sh_entsize"],
        )  # fmt: skip

    def _string(self, table: memoryview, offset: int, *, what: str) -> str:
        if offset >= len(table):
            if offset == 0:
                return ""
            raise self.error(f"the {what} lies outside its string table.")
        # 4 KiB bounds the copy: a table without NULs must not be copied once a symbol.
        piece = bytes(table[offset : offset + 4096])
        end = piece.find(b"\0")
        if end < 0:
            raise self.error(f"the {what} is not terminated within 4096 bytes.")
        return piece[:end].decode("utf-8", "backslashreplace")

    def data(self, section: Section) -> bytes:
        """The bytes of a section; zeroes where the file has none. Variables that are zero (.bss),
        which may be of any size, are never asked for."""
        if section.type == SHT_NOBITS:
            if section.size > _MAX_ZEROES:
                raise self.error(
                    f"{section.size} bytes are said to be in it, and the file has none of them.",
                    section=section.name,
                )
            return bytes(section.size)
        return self.raw[section.offset : section.offset + section.size]

    def _read_symbols(self) -> list[Symbol]:
        tables = [s for s in self.sections if s.type == SHT_SYMTAB]
        if len(tables) > 1:
            raise self.error("there is more than one symbol table.")
        if not tables:
            raise self.error("there is no symbol table; the object was stripped of it.")
        table = tables[0]
        if not 0 < table.link < len(self.sections) or (
            self.sections[table.link].type != SHT_STRTAB
        ):
            raise self.error("the symbol table names no string table.", section=table.name)
        if table.size % 24 or table.entsize != 24:
            raise self.error(
                f"the symbol table's {table.size} bytes are not entries of 24 bytes each (it "
                f"says {table.entsize}).",
                section=table.name,
            )
        strings = memoryview(self.data(self.sections[table.link]))
        symbols = []
        entries = struct.iter_unpack(self._order + "IBBHQQ", self.data(table))
        for index, (name, info, other, shndx, value, size) in enumerate(entries):
            kind = info & 15
            try:
                text = self._string(strings, name, what=f"name of symbol {index}")
            except FormatError:
                if kind == STT_FUNC:
                    raise
                text = ""  # nothing asks for it, or says so where it does
            if kind == STT_SECTION and not text and shndx < len(self.sections):
                text = self.sections[shndx].name
            symbols.append(Symbol(index, text, value, size, kind, info >> 4, other & 3, shndx))
        return symbols

    def relocations(self, section: Section) -> Iterator[Relocation]:
        """The relocations in ``section`` (SHT_REL), in file order."""
        for offset, info in self.relocation_words(section):
            yield Relocation(offset, self.symbols[info >> 32], info & 0xFFFFFFFF)

    def relocation_words(self, section: Section) -> Iterator[tuple[int, int]]:
        """As ``relocations``, but (byte offset, number of the symbol << 32 | type)."""
        if section.type == SHT_RELA:
            raise self.error("relocations with addends (RELA) are not BPF's.", section=section.name)
        if section.size % 16:
            raise self.error(f"its size {section.size} is no multiple of 16.", section=section.name)
        count = len(self.symbols)
        words = array("Q", self.data(section))
        if (self._order == "<") != (sys.byteorder == "little"):
            words.byteswap()
        offsets, infos = words[::2], words[1::2]
        if infos and max(infos) >> 32 >= count:
            at = next(i for i, info in enumerate(infos) if info >> 32 >= count)
            raise self.error(
                f"a relocation at byte {offsets[at]} names symbol {infos[at] >> 32} of {count}.",
                section=section.name,
            )
        return zip(offsets, infos, strict=True)

    def relocation_sections(self) -> Iterator[tuple[Section, Section]]:
        """(relocation section, the section it patches), in file order."""
        for section in self.sections:
            if section.type not in (SHT_REL, SHT_RELA):
                continue
            if section.name.startswith(_UNREAD) or not section.info:
                continue
            if section.info >= len(self.sections):
                raise self.error(
                    f"it relocates section {section.info}, which does not exist.",
                    section=section.name,
                )
            if section.type == SHT_REL and section.entsize != 16:
                raise self.error(
                    f"its entries are said to have {section.entsize} bytes, not 16.",
                    section=section.name,
                )
            yield section, self.sections[section.info]
