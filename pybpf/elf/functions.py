# SPDX-License-Identifier: BSD-2-Clause
"""Functions of an object: instructions, what they refer to, and what BTF.ext says of them."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right

from pybpf.btf.consts import KIND_DECL_TAG
from pybpf.btf.ext import BtfExt
from pybpf.btf.model import Btf
from pybpf.elf import sections
from pybpf.elf.data import ARENA_SECTION
from pybpf.elf.image import (
    SHT_PROGBITS,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    ElfImage,
    Section,
    Symbol,
)
from pybpf.spec import (
    NO_CALLBACK,
    CoreRelo,
    ExternSpec,
    FunctionSpec,
    LineInfo,
    MapSpec,
    ProgramSpec,
    Ref,
)
from pybpf.sys import abi

__all__ = ["TEXT", "MapTable", "read_functions", "read_programs"]

TEXT = ".text"
_CALL = 0x85  # BPF_JMP | BPF_CALL
_LDIMM64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW


class MapTable:
    """Where maps stand in the ELF, for relocations against them.

    definitions: (section index, byte offset) → map name, of maps that are defined one by one;
    data: section index → name of the data map; arena: name of the arena map, if there is one;
    tables: index of the section of jump tables, -1 if there is none.
    """

    __slots__ = ("arena", "data", "definitions", "tables")

    def __init__(self, data: dict[int, MapSpec]) -> None:
        self.definitions: dict[tuple[int, int], str] = {}
        self.data = data
        self.arena: str | None = None
        self.tables = -1


# Records are made by the hundred thousand: without the checks of calling their class.
_ref = tuple.__new__
_Reference = tuple[str, str, int, int]  # the fields of a Ref behind its slot


class _Code:
    """The functions of one executable section, sorted by offset."""

    def __init__(self, section: Section, data: bytes) -> None:
        self.section = section
        self.data = data
        self.numbers: list[int] = []
        self.starts: list[int] = []

    def containing(self, offset: int, sizes: list[int]) -> int:
        """Number of the function that holds byte ``offset``, -1 if none does."""
        at = bisect_right(self.starts, offset) - 1
        if at < 0:
            return -1
        return self.numbers[at] if offset < self.starts[at] + sizes[self.numbers[at]] else -1


def _executable(section: Section) -> bool:
    return (
        section.type == SHT_PROGBITS
        and section.executable
        and section.size > 0
        and not section.name.startswith(".debug_")
    )


def _find_functions(image: ElfImage) -> tuple[list[Symbol], dict[int, _Code]]:
    codes = {
        s.number: _Code(s, image.data(s)) for s in image.sections if s.number and _executable(s)
    }
    found = []
    for symbol in image.symbols:
        code = codes.get(symbol.section)
        if code is None or symbol.type != STT_FUNC:
            continue
        where = {"program": symbol.name, "section": code.section.name}
        if symbol.value % 8 or symbol.size % 8 or symbol.size == 0:
            raise image.error(
                f"the function has {symbol.size} bytes at {symbol.value}; instructions have 8 "
                "bytes each.",
                **where,
            )
        if symbol.value + symbol.size > len(code.data):
            raise image.error("the function lies outside its section.", **where)
        if symbol.bind == STB_LOCAL and code.section.name != TEXT:
            raise image.error(
                "a program cannot be static.",
                hint="Remove `static`, or SEC() if it is a subprogram.",
                **where,
            )
        found.append(symbol)
    # Symbols may share code, as aliases do; each becomes a function with its own copy.
    held = sum(len(code.data) for code in codes.values())
    claimed = sum(symbol.size for symbol in found)
    if claimed > max(8 * held, 1 << 20):
        raise image.error(
            f"its {len(found)} functions overlap: they claim {claimed} bytes of {held} bytes of "
            "instructions."
        )
    # Of those that begin together the largest comes last: it holds what any of them does.
    found.sort(key=lambda s: (s.section, s.value, s.size))
    for number, symbol in enumerate(found):
        codes[symbol.section].numbers.append(number)
        codes[symbol.section].starts.append(symbol.value)
    return found, codes


class _Reader:
    def __init__(
        self, image: ElfImage, maps: MapTable, externs: dict[str, ExternSpec], ext: BtfExt | None
    ) -> None:
        self.image = image
        self.maps = maps
        self.externs = externs
        self.ext = ext
        self.symbols, self.codes = _find_functions(image)
        self.sizes = [s.size for s in self.symbols]
        self.order = "<" if image.byteorder == "little" else ">"
        self.insn = struct.Struct(self.order + "BBhi").unpack_from
        # Relocations mostly come in order: the functions asked for last, and their bytes.
        self._held: tuple[int, int, int, list[int]] = (-1, 0, 0, [])
        # What instructions refer to, by their bytes and symbol: calls of one function are alike.
        self._references: dict[tuple[bytes, int], _Reference] = {}
        text = image.by_name.get(TEXT)
        self.text = self.codes.get(text.number) if text is not None else None

    # BPF registers share a byte: destination in the low nibble, on big-endian in the high one.
    def source(self, regs: int) -> int:
        return regs >> 4 if self.order == "<" else regs & 15

    def read(self, btf: Btf | None) -> list[FunctionSpec]:
        refs: dict[int, dict[int, Ref]] = {n: {} for n in range(len(self.symbols))}
        for rel_section, target in self.image.relocation_sections():
            code = self.codes.get(target.number)
            if code is None:
                continue
            self.relocate(code, rel_section, refs)
        lines, core, types = self.extra(btf)
        out = []
        for number, symbol in enumerate(self.symbols):
            code = self.codes[symbol.section]
            insns = code.data[symbol.value : symbol.value + symbol.size]
            self.local_calls(code, symbol, insns, refs[number])
            out.append(
                FunctionSpec(
                    name=symbol.name,
                    section=code.section.name,
                    offset=symbol.value,
                    insns=insns,
                    refs=tuple(map(refs[number].__getitem__, sorted(refs[number]))),
                    type_id=types.get(number, 0),
                    lines=tuple(lines[number]),
                    core=tuple(core[number]),
                    global_=symbol.bind != STB_LOCAL and not symbol.hidden,
                    weak=symbol.bind == STB_WEAK,
                )
            )
        return out

    def covering(self, code: _Code, offset: int) -> list[int]:
        """All functions that hold byte ``offset``: symbols may share code."""
        section, start, end, numbers = self._held
        if section == code.section.number and start <= offset < end:
            return numbers
        number = code.containing(offset, self.sizes)
        if number < 0:
            return []
        start = self.symbols[number].value
        first, last = bisect_left(code.starts, start), bisect_right(code.starts, start)
        numbers = code.numbers[first:last]
        if len(numbers) == 1:
            end = start + self.sizes[number]
            if last < len(code.starts):
                end = min(end, code.starts[last])
            self._held = (code.section.number, start, end, numbers)
            return numbers
        # Those that begin together may end apart.
        return [n for n in numbers if offset < start + self.sizes[n]]

    def relocate(
        self, code: _Code, rel_section: Section, refs: dict[int, dict[int, Ref]]
    ) -> None:
        """The relocations of one section's code: there may be a million of them."""
        data = code.data
        known = self._references.get
        start = end = last = 0
        rows: dict[int, Ref] = {}
        for offset, info in self.image.relocation_words(rel_section):
            if not start <= offset < end:
                self.covering(code, offset)
                section, start, end, numbers = self._held
                if section == code.section.number and start <= offset < end:
                    rows, last = refs[numbers[0]], start + self.sizes[numbers[0]] - 8
                else:
                    start = end = last = 0
            found = known((data[offset : offset + 8], info))
            # What is new, cannot be, or needs a look at the function's end goes the long way.
            if found is None or offset >= last or offset & 7:
                self.relocate_one(code, offset, info, refs)
            else:
                slot = (offset - start) >> 3
                rows[slot] = _ref(Ref, (slot, *found))

    def relocate_one(
        self, code: _Code, offset: int, info: int, refs: dict[int, dict[int, Ref]]
    ) -> None:
        symbol = self.image.symbols[info >> 32]
        insn = code.data[offset : offset + 8]
        if offset % 8 or len(insn) < 8:
            raise self.image.error(
                f"a relocation at byte {offset} hits no instruction.", section=code.section.name
            )
        # A weak function that a static linker replaced leaves its code and relocations behind.
        for number in self.covering(code, offset):
            slot = (offset - self.symbols[number].value) // 8
            if insn[0] == _LDIMM64 and 8 * slot + 16 > self.sizes[number]:
                raise self.image.error(
                    f"its end cuts the 64-bit load of {symbol.name!r}, which has two slots.",
                    program=self.symbols[number].name,
                    section=code.section.name,
                    insn=slot,
                )
            place = insn, info
            found = self._references.get(place)
            if found is None:
                try:
                    found = self._references[place] = self.reference(code, insn, slot, symbol)
                except KeyError:
                    section = self.image.sections
                    where = section[symbol.section].name if symbol.section < len(section) else "?"
                    raise self.image.error(
                        f"it refers to {symbol.name!r} in section {where!r}, which holds neither "
                        "maps nor data nor functions that can be called.",
                        program=self.symbols[number].name,
                        section=code.section.name,
                        insn=slot,
                    ) from None
            refs[number][slot] = _ref(Ref, (slot, *found))

    def reference(self, code: _Code, insn: bytes, slot: int, symbol: Symbol) -> _Reference:
        """What an instruction refers to; KeyError if that is nothing BPF can refer to."""
        opcode, regs, _, imm = self.insn(insn)
        if opcode not in (_CALL, _LDIMM64):
            raise self.image.error(
                f"instruction {slot} (opcode {opcode:#04x}) cannot refer to symbol "
                f"{symbol.name!r}: only call and 64-bit load can.",
                section=code.section.name,
            )
        if not symbol.section and symbol.undefined:
            return "extern", self.externs[symbol.name].name, 0, -1
        if opcode == _CALL:
            if self.source(regs) != abi.BPF_PSEUDO_CALL:
                raise KeyError(symbol.name)
            return self.subprogram("call", symbol, symbol.value + 8 * (imm + 1))
        if self.text is not None and symbol.section == self.text.section.number:
            return self.subprogram("func", symbol, symbol.value + imm)
        if symbol.section == self.maps.tables:
            return "table", symbol.name, symbol.value, -1
        name = self.maps.definitions.get((symbol.section, symbol.value))
        if name is not None:
            return "map", name, 0, -1
        data = self.maps.data.get(symbol.section)
        if data is not None:
            return "data", data.name, symbol.value + imm, -1
        sections_ = self.image.sections
        if (
            self.maps.arena is not None
            and symbol.section < len(sections_)
            and sections_[symbol.section].name == ARENA_SECTION
        ):
            return "data", self.maps.arena, symbol.value + imm, -1
        raise KeyError(symbol.name)

    def subprogram(self, kind: str, symbol: Symbol, offset: int) -> _Reference:
        """A reference to the subprogram at byte ``offset`` of .text, where subprograms live."""
        if self.text is None or symbol.section != self.text.section.number or offset % 8:
            raise KeyError(symbol.name)
        return self.target(kind, self.text, offset)

    def target(self, kind: str, code: _Code, offset: int) -> _Reference:
        """A reference to the function at a byte of a section. Where there is none the reference
        keeps the place: linking a program that needs it fails, other programs may be fine."""
        number = code.containing(offset, self.sizes)
        if number < 0:
            return kind, code.section.name, offset, -1
        return kind, self.symbols[number].name, 0, number

    def local_calls(self, code: _Code, symbol: Symbol, insns: bytes, refs: dict[int, Ref]) -> None:
        """Calls within one section need no relocation: their distance is in the instruction."""
        opcodes = insns[::8]
        if _CALL not in opcodes:
            return
        for slot in [n for n, op in enumerate(opcodes) if op == _CALL and n not in refs]:
            regs, imm = self.insn(insns, 8 * slot)[1::2]
            if self.source(regs) != abi.BPF_PSEUDO_CALL or _second_slot(opcodes, slot):
                continue
            target = self.target("call", code, symbol.value + 8 * (slot + imm + 1))
            refs[slot] = _ref(Ref, (slot, *target))

    def extra(
        self, btf: Btf | None
    ) -> tuple[dict[int, list[LineInfo]], dict[int, list[CoreRelo]], dict[int, int]]:
        """line_info, CO-RE relocations and FUNC id of each function, by its number."""
        lines: dict[int, list[LineInfo]] = {n: [] for n in range(len(self.symbols))}
        core: dict[int, list[CoreRelo]] = {n: [] for n in range(len(self.symbols))}
        types: dict[int, int] = {}
        if self.ext is None or btf is None:
            return lines, core, types
        for code in self.codes.values():
            name = code.section.name
            for row in sorted(self.ext.line_info.get(name, ())):
                for number in self.covering(code, row[0]):
                    slot = (row[0] - self.symbols[number].value) // 8
                    lines[number].append(_ref(LineInfo, (slot, *row[1:])))
            for record in sorted(self.ext.core_relos.get(name, ())):
                if record.insn_off % 8:
                    raise self.image.error(
                        f"a CO-RE relocation at byte {record.insn_off} hits no instruction.",
                        section=name,
                    )
                access = btf.name(record.access_str_off)
                for number in self.covering(code, record.insn_off):
                    slot = (record.insn_off - self.symbols[number].value) // 8
                    core[number].append(
                        CoreRelo(slot, record.type_id, access, record.access_str_off, record.kind)
                    )
            for info in self.ext.func_info.get(name, ()):
                for number in self.covering(code, info.insn_off):
                    if self.symbols[number].value == info.insn_off:
                        types[number] = info.type_id
        return lines, core, types


def _second_slot(opcodes: bytes, slot: int) -> bool:
    """Whether a slot is the second half of a 64-bit load."""
    start = slot
    while start and opcodes[start - 1] == _LDIMM64:
        start -= 1
    return bool((slot - start) % 2)


def read_functions(
    image: ElfImage,
    btf: Btf | None,
    ext: BtfExt | None,
    maps: MapTable,
    externs: dict[str, ExternSpec],
) -> list[FunctionSpec]:
    """All functions of the object, by section and offset. Raises FormatError."""
    return _Reader(image, maps, externs, ext).read(btf)


def read_programs(
    functions: list[FunctionSpec], btf: Btf | None, image: ElfImage
) -> dict[str, ProgramSpec]:
    """The entry functions, those outside .text, with what their section says."""
    callbacks = _exception_callbacks(functions, btf)
    programs: dict[str, ProgramSpec] = {}
    for number, function in enumerate(functions):
        if function.section == TEXT:
            continue
        if function.name in programs:
            raise image.error("there are two programs of this name.", program=function.name)
        section, autoload = sections.split(function.section)
        found = sections.find(section)
        definition, target = found if found is not None else (None, None)
        programs[function.name] = ProgramSpec(
            name=function.name,
            section=section,
            function=number,
            type=definition.type if definition else abi.BPF_PROG_TYPE_UNSPEC,
            expected_attach_type=definition.attach_type if definition else 0,
            attach_to=target,
            flags=definition.flags if definition else 0,
            autoload=autoload,
            exception_callback=callbacks.get(number, -1),
        )
    return programs


_EXCEPTION = "exception_callback:"


def _exception_callbacks(functions: list[FunctionSpec], btf: Btf | None) -> dict[int, int]:
    """Function number → number of its exception callback (__exception_cb, kernel 6.7).

    -1 where several are named, which the verifier refuses, and NO_CALLBACK where the one that is
    named is no global subprogram: as with libbpf, both matter only to that program.
    """
    out: dict[int, int] = {}
    if btf is None:
        return out
    named: dict[str, list[int]] = {}
    for number, function in enumerate(functions):
        named.setdefault(function.name, []).append(number)
    for tag in btf.of_kind(KIND_DECL_TAG):
        if tag.component != -1 or not tag.name.startswith(_EXCEPTION):
            continue
        wanted = tag.name[len(_EXCEPTION) :]
        target = btf.type(tag.type)
        mains = [n for n in named.get(target.name, ()) if functions[n].section != TEXT]
        backs = [
            n for n in named.get(wanted, ())
            if functions[n].section == TEXT and functions[n].global_
        ]
        for main in mains:
            if main in out:
                out[main] = -1
            else:
                out[main] = backs[0] if backs else NO_CALLBACK
    return out
