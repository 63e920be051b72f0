# SPDX-License-Identifier: BSD-2-Clause
"""Damaged objects, judged as libbpf judges them: BTF is left out where nothing is defined by it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pybpf.btf.consts import KIND_FUNC, KIND_FUNC_PROTO
from pybpf.btf.model import Btf
from pybpf.cli import main
from pybpf.elf import read
from pybpf.elf.image import ElfImage
from pybpf.errors import FormatError
from pybpf.spec import ObjectSpec

OBJECTS = Path(__file__).parent.parent / "objects"
# Maps, externs and CO-RE; CO-RE without BTF maps; neither; struct_ops.
FEATURES, MODULE, MANY, STRUCT_OPS = (
    OBJECTS / f"{name}.bpf.o" for name in ("features", "module", "many", "struct_ops")
)
Change = Callable[[bytearray], None]

HEADER = 24  # of BTF.ext, up to core_relo_off
FUNC_INFO, LINE_INFO, CORE_RELO = 8, 16, 24  # (offset, length) of each part, in the header


def changed(path: Path, section: str, change: Change) -> bytes:
    """The object with a section changed in place."""
    data = bytearray(path.read_bytes())
    found = ElfImage(bytes(data), name="x").by_name[section]
    part = data[found.offset : found.offset + found.size]
    change(part)
    assert len(part) == found.size
    data[found.offset : found.offset + found.size] = part
    return bytes(data)


def record_size(part: int) -> Change:
    """A size of records that cannot be, in one part of BTF.ext."""

    def change(data: bytearray) -> None:
        header, at = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, part)[0]
        struct.pack_into("<I", data, header + at, 3)

    return change


def magic(data: bytearray) -> None:
    data[:2] = b"\0\0"


def flags(data: bytearray) -> None:
    """A flag of BTF.ext that nobody knows."""
    data[3] = 1


def types_too_long(data: bytearray) -> None:
    struct.pack_into("<I", data, 12, len(data))


def kind_too_high(data: bytearray) -> None:
    """The first type is of a kind that nobody knows."""
    (header,) = struct.unpack_from("<I", data, 4)
    data[header + 7] = 0x7E


def told(spec: ObjectSpec) -> list[str]:
    found: tuple[str, ...] = spec.notes["damaged"]
    return list(found)


def name_outside(data: bytearray) -> None:
    """The name of the first type lies outside the strings."""
    (header,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<I", data, header, 1 << 30)


def no_prototype(data: bytearray) -> None:
    """A function whose type is itself."""
    btf = Btf.parse(bytes(data))
    function = next(iter(btf.of_kind(KIND_FUNC)))
    struct.pack_into("<I", data, btf.header.type_range[0] + 4 * function.pos + 8, function.id)


def no_such_type(data: bytearray) -> None:
    """A function with a parameter of a type that is not there."""
    btf = Btf.parse(bytes(data))
    proto = next(p for p in btf.of_kind(KIND_FUNC_PROTO) if p.vlen)
    struct.pack_into("<I", data, btf.header.type_range[0] + 4 * proto.pos + 16, btf.count)


DAMAGED_EXT = [record_size(FUNC_INFO), record_size(LINE_INFO), magic, flags]
DAMAGED_BTF = [magic, types_too_long, kind_too_high, name_outside, no_prototype, no_such_type]


@pytest.mark.parametrize("change", [*DAMAGED_EXT, record_size(CORE_RELO)])
def test_relocations_are_lost_with_what_stands_beside_them(change: Change) -> None:
    """Their programs stay as they were compiled, and that is told."""
    whole, spec = read(MODULE), read(changed(MODULE, ".BTF.ext", change))
    assert any(f.core for f in whole.functions)
    (note,) = told(spec)
    assert "damaged and left out" in note
    assert "CO-RE relocations are lost" in note
    for one, other in zip(spec.functions, whole.functions, strict=True):
        assert (one.insns, one.core, one.lines, one.type_id) == (other.insns, (), (), 0)


@pytest.mark.parametrize("change", DAMAGED_EXT)
def test_what_only_makes_legible_is_left_out(change: Change) -> None:
    whole, spec = read(MANY), read(changed(MANY, ".BTF.ext", change))
    (note,) = told(spec)
    assert "damaged and left out" in note
    assert "CO-RE" not in note
    assert [f.insns for f in spec.functions] == [f.insns for f in whole.functions]
    assert spec.btf is not None


@pytest.mark.parametrize("section", [".BTF", ".BTF.ext"])
@pytest.mark.parametrize(
    ("path", "needed"),
    [(FEATURES, "it defines the maps"), (STRUCT_OPS, "it describes the struct_ops")],
)
def test_btf_that_is_needed(path: Path, needed: str, section: str) -> None:
    for change in DAMAGED_BTF if section == ".BTF" else DAMAGED_EXT:
        with pytest.raises(FormatError, match=f"It cannot be left out: {needed}"):
            read(changed(path, section, change))


@pytest.mark.parametrize("change", DAMAGED_BTF)
def test_btf_that_is_not_needed(change: Change) -> None:
    whole, spec = read(MANY), read(changed(MANY, ".BTF", change))
    assert "damaged and left out" in told(spec)[0]
    assert spec.btf is None
    assert [f.insns for f in spec.functions] == [f.insns for f in whole.functions]
    assert {n: m.value_size for n, m in spec.maps.items()} == {
        n: m.value_size for n, m in whole.maps.items()
    }


def section_header(data: bytes, name: str) -> int:
    """Byte offset of a section's header."""
    (headers,) = struct.unpack_from("<Q", data, 0x28)  # e_shoff
    return int(headers) + 64 * ElfImage(data, name="x").by_name[name].number


def test_relocations_without_btf() -> None:
    """As a tool leaves them that removes .BTF and not .BTF.ext."""
    data = bytearray(MODULE.read_bytes())
    struct.pack_into("<I", data, section_header(bytes(data), ".BTF"), 0)  # sh_name
    (note,) = told(read(bytes(data)))
    assert "there is no BTF" in note
    assert "CO-RE relocations are lost" in note


@pytest.mark.parametrize(
    ("section", "at", "form", "value", "match"),
    [
        (".BTF", 4, "<I", 8, "not PROGBITS"),  # sh_type
        (".relraw_tp/sched_switch", 56, "<Q", 8, "8 bytes, not 16"),  # sh_entsize
        (".symtab", 56, "<Q", 0, "not entries of 24 bytes"),  # sh_entsize
        (".relraw_tp/sched_switch", 44, "<I", 999, "does not exist"),  # sh_info
    ],
)
def test_section_headers_that_do_not_fit(
    section: str, at: int, form: str, value: int, match: str
) -> None:
    data = bytearray(FEATURES.read_bytes())
    struct.pack_into(form, data, section_header(bytes(data), section) + at, value)
    with pytest.raises(FormatError, match=match):
        read(bytes(data))


def test_what_nobody_looks_at_may_be_wrong() -> None:
    """The size of a section header (libelf knows it), and the name of a section's symbol."""
    data = bytearray(FEATURES.read_bytes())
    struct.pack_into("<H", data, 0x3A, 8256)  # e_shentsize
    image = ElfImage(bytes(data), name="x")
    table = next(s for s in image.sections if s.type == 2)
    part = next(s for s in image.symbols if s.type == 3)  # STT_SECTION
    struct.pack_into("<I", data, table.offset + 24 * part.number, 1 << 30)
    assert [f.insns for f in read(bytes(data)).functions] == [
        f.insns for f in read(FEATURES).functions
    ]


@pytest.mark.parametrize("section", [".llvm_addrsig", ".rel.BTF"])
def test_sections_for_other_tools_may_lie_outside(section: str) -> None:
    data = bytearray(FEATURES.read_bytes())
    struct.pack_into("<Q", data, section_header(bytes(data), section) + 32, 1 << 31)  # sh_size
    assert read(bytes(data)).programs.keys() == read(FEATURES).programs.keys()


def test_a_functions_name_is_needed() -> None:
    data = bytearray(FEATURES.read_bytes())
    image = ElfImage(bytes(data), name="x")
    table = next(s for s in image.sections if s.type == 2)
    function = next(s for s in image.symbols if s.type == 2)
    struct.pack_into("<I", data, table.offset + 24 * function.number, 1 << 30)
    with pytest.raises(FormatError, match="lies outside its string table"):
        read(bytes(data))


def test_another_elf_version() -> None:
    data = bytearray(MANY.read_bytes())
    data[6] = 2  # e_ident[EI_VERSION]
    with pytest.raises(FormatError, match="ELF version is 2"):
        read(bytes(data))


def test_code_in_a_debugging_section_is_none() -> None:
    """As libbpf passes over whatever is called .debug_…."""
    data = MANY.read_bytes()
    assert read(data).programs
    assert not read(data.replace(b"raw_tp/sys_enter", b".debug_sys_enter")).programs


def test_commands_tell_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "many.bpf.o"
    path.write_bytes(changed(MANY, ".BTF", magic))
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr()
    assert "program" in out.out
    assert "damaged and left out" in out.err
