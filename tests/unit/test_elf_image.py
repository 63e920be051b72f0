# SPDX-License-Identifier: BSD-2-Clause
"""The ELF layer: equal to pyelftools on real objects, and our own errors on everything else."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_SH_TYPE_BASE
from elftools.elf.relocation import RelocationSection

from pybpf.elf import read
from pybpf.elf.image import ElfImage
from pybpf.errors import FormatError, PybpfError
from tests.unit.elfwriter import EXIT, RETURN_0, ElfWriter, insn, load

OBJECTS = sorted((Path(__file__).parent.parent / "objects").glob("*.o"))


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_all_tables_are_as_pyelftools_reads_them(path: Path) -> None:
    data = path.read_bytes()
    image = ElfImage(data, name="x")
    elf = ELFFile(io.BytesIO(data))
    types = {None: 0, **ENUM_SH_TYPE_BASE}
    assert [s[1:] for s in image.sections] == [
        (
            "" if not number else theirs.name, types.get(theirs["sh_type"], theirs["sh_type"]),
            theirs["sh_flags"], theirs["sh_offset"], theirs["sh_size"], theirs["sh_link"],
            theirs["sh_info"], theirs["sh_entsize"],
        )
        for number, theirs in enumerate(elf.iter_sections())
    ]  # fmt: skip
    symbols = list(elf.get_section_by_name(".symtab").iter_symbols())
    assert [(s.value, s.size) for s in image.symbols] == [
        (s["st_value"], s["st_size"]) for s in symbols
    ]
    assert [s.name for s in image.symbols if s.type != 3] == [
        s.name for s in symbols if s["st_info"]["type"] != "STT_SECTION"
    ]
    seen = 0
    for section, _ in image.relocation_sections():
        theirs = elf.get_section(section.number)
        assert isinstance(theirs, RelocationSection)
        assert [(r.offset, r.symbol.number, r.type) for r in image.relocations(section)] == [
            (r["r_offset"], r["r_info_sym"], r["r_info_type"]) for r in theirs.iter_relocations()
        ]
        seen += 1
    assert seen


def small() -> ElfWriter:
    elf = ElfWriter()
    code = elf.code("socket", RETURN_0)
    elf.function("prog", code, 0, 16)
    elf.section("license", b"GPL\0")
    return elf


def test_smallest_object() -> None:
    spec = read(small().build(), name="small")
    assert spec.license == "GPL"
    assert spec.programs["prog"].type == 1
    assert spec.functions[0].insns == RETURN_0
    assert spec.btf is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b"", "no ELF"),
        (lambda b: b"\x7fELF", "damaged"),
        (lambda b: b[:40], "damaged"),
        (lambda b: b[:4] + b"\1" + b[5:], "32-bit|damaged"),
        (lambda b: b[:16] + b"\2" + b[17:], "no relocatable"),
        (lambda b: b[:18] + b"\x3e" + b[19:], "machine 62"),
        (lambda b: b[:-64], "outside the file"),
    ],
)
def test_damaged_headers(change: object, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(change(small().build()), name="x")  # type: ignore[operator]


def test_old_machine_number_is_accepted() -> None:
    elf = small()
    elf.machine = 0
    assert list(read(elf.build(), name="x").programs) == ["prog"]


def test_huge_bss_is_refused_without_allocating() -> None:
    elf = small()
    elf.section(".bss", type=8, size=1 << 40)
    with pytest.raises(FormatError, match="claims"):
        read(elf.build(), name="x")


def test_without_symbol_table() -> None:
    data = bytearray(small().build())
    image = ElfImage(bytes(data), name="x")
    table = next(s for s in image.sections if s.name == ".symtab")
    start = int.from_bytes(data[40:48], "little") + 64 * table.number
    data[start + 4 : start + 8] = (1).to_bytes(4, "little")  # SHT_PROGBITS
    with pytest.raises(FormatError, match="no symbol table"):
        read(bytes(data), name="x")


def broken(make: object) -> bytes:
    elf = ElfWriter()
    make(elf)  # type: ignore[operator]
    return elf.build()


def _static(elf: ElfWriter) -> None:
    elf.function("f", elf.code("xdp", RETURN_0), 0, 16, bind=0)


def _outside(elf: ElfWriter) -> None:
    elf.function("f", elf.code("xdp", RETURN_0), 8, 16)


def _odd(elf: ElfWriter) -> None:
    elf.function("f", elf.code("xdp", RETURN_0), 0, 12)


def _twice(elf: ElfWriter) -> None:
    elf.function("f", elf.code("xdp", RETURN_0), 0, 16)
    elf.function("f", elf.code("tc", RETURN_0), 0, 16)


def _not_reloc(elf: ElfWriter) -> None:
    code = elf.code("xdp", RETURN_0)
    elf.function("f", code, 0, 16)
    elf.relocate(code, 0, elf.symbol("x", elf.section(".data", b"1234"), 0, 4))


def _nowhere(elf: ElfWriter) -> None:
    code = elf.code("xdp", load() + RETURN_0)
    elf.function("f", code, 0, 32)
    elf.relocate(code, 0, elf.symbol("x", elf.section("strange", b"1234"), 0, 4))


def _misaligned(elf: ElfWriter) -> None:
    code = elf.code("xdp", load() + RETURN_0)
    elf.function("f", code, 0, 32)
    elf.relocate(code, 4, elf.symbol("x", elf.section(".data", b"1234"), 0, 4))


def _extern_without_btf(elf: ElfWriter) -> None:
    code = elf.code("xdp", insn(0x85, 0, 1, 0, -1) + EXIT)
    elf.function("f", code, 0, 16)
    elf.relocate(code, 0, elf.extern("kfunc"))


def _version(elf: ElfWriter) -> None:
    elf.section("version", b"12345")


def _maps(elf: ElfWriter) -> None:
    elf.symbol("m", elf.section(".maps", bytes(32)), 0, 32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_static, "cannot be static"),
        (_outside, "outside its section"),
        (_odd, "8 bytes each"),
        (_twice, "two programs"),
        (_not_reloc, "cannot refer"),
        (_nowhere, "neither maps"),
        (_misaligned, "hits no instruction"),
        (_extern_without_btf, "no BTF"),
        (_version, "instead of 4"),
        (_maps, "has no BTF"),
    ],
)
def test_malformed_objects(make: object, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        read(broken(make), name="x")
    assert "object" in caught.value.where


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_mutations_give_our_errors_only(path: Path) -> None:
    data = path.read_bytes()
    rng = random.Random(path.name)
    refused = 0
    for _ in range(400):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            mutant[rng.randrange(len(mutant))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        if rng.random() < 0.1:
            del mutant[rng.randrange(len(mutant)) :]
        try:
            read(bytes(mutant), name="m")
        except PybpfError:
            refused += 1
    assert 20 < refused < 400


@pytest.mark.parametrize("name", [".debug_info", ".rel.debug_info", ".rel.BTF.ext"])
@pytest.mark.parametrize(("field", "value"), [(24, 1 << 40), (32, 1 << 40), (44, 999)])
def test_damage_in_what_only_debuggers_read(name: str, field: int, value: int) -> None:
    elf = small()
    held = elf.section(name.removeprefix(".rel"), b"" if "BTF" in name else bytes(16), flags=0)
    elf.relocate(held, 0, elf.symbol("v", held))
    data = bytearray(elf.build())
    found = next(s for s in ElfImage(bytes(data), name="x").sections if s.name == name)
    (start,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<I" if field == 44 else "<Q", data, start + 64 * found.number + field, value)
    assert list(read(bytes(data), name="x").programs) == ["prog"]
