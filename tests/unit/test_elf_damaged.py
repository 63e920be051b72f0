# SPDX-License-Identifier: BSD-2-Clause
"""Damaged BTF: left out where it only makes things legible, else the object is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pybpf.cli import main
from pybpf.elf import read
from pybpf.elf.image import ElfImage
from pybpf.errors import FormatError
from pybpf.spec import ObjectSpec

OBJECTS = Path(__file__).parent.parent / "objects"
# Maps, externs and CO-RE; CO-RE without maps and externs; neither; struct_ops.
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


def types_too_long(data: bytearray) -> None:
    struct.pack_into("<I", data, 12, len(data))


def kind_too_high(data: bytearray) -> None:
    """The first type is of a kind that nobody knows."""
    (header,) = struct.unpack_from("<I", data, 4)
    data[header + 7] = 0x7E


def told(spec: ObjectSpec) -> list[str]:
    found: tuple[str, ...] = spec.notes["damaged"]
    return list(found)


@pytest.mark.parametrize("path", [FEATURES, MODULE, MANY, STRUCT_OPS])
@pytest.mark.parametrize("part", [FUNC_INFO, LINE_INFO])
def test_what_only_makes_legible_is_left_out(path: Path, part: int) -> None:
    whole = read(path)
    assert told(whole) == []
    spec = read(changed(path, ".BTF.ext", record_size(part)))
    what = "func_info" if part == FUNC_INFO else "line_info"
    assert len(told(spec)) == 1
    assert f"its {what} part" in told(spec)[0]
    for one, other in zip(spec.functions, whole.functions, strict=True):
        assert one.insns == other.insns
        assert one.core == other.core
        assert one.lines == (() if part == LINE_INFO else other.lines)
        assert one.type_id == (0 if part == FUNC_INFO else other.type_id)


@pytest.mark.parametrize("path", [FEATURES, MODULE])
@pytest.mark.parametrize("change", [record_size(CORE_RELO), magic])
def test_damaged_relocations_are_refused(path: Path, change: Change) -> None:
    """Programs would read at the offsets of the kernel that they were compiled for."""
    with pytest.raises(FormatError):
        read(changed(path, ".BTF.ext", change))


@pytest.mark.parametrize("change", [magic, types_too_long, kind_too_high])
@pytest.mark.parametrize(
    ("path", "needed"),
    [(FEATURES, "it defines the maps"), (MODULE, "the CO-RE relocations refer to it"),
     (STRUCT_OPS, "it describes the struct_ops")],
)  # fmt: skip
def test_btf_that_is_needed(path: Path, needed: str, change: Change) -> None:
    with pytest.raises(FormatError, match=f"It cannot be left out: {needed}"):
        read(changed(path, ".BTF", change))


@pytest.mark.parametrize("change", [magic, types_too_long, kind_too_high])
def test_btf_that_is_not_needed(change: Change) -> None:
    whole, spec = read(MANY), read(changed(MANY, ".BTF", change))
    assert len(told(spec)) == 1
    assert "damaged and left out" in told(spec)[0]
    assert spec.btf is None
    assert [f.insns for f in spec.functions] == [f.insns for f in whole.functions]
    assert {n: m.value_size for n, m in spec.maps.items()} == {
        n: m.value_size for n, m in whole.maps.items()
    }


def test_relocations_without_btf() -> None:
    """As a tool leaves them that removes .BTF and not .BTF.ext."""
    data = bytearray(MODULE.read_bytes())
    number = ElfImage(bytes(data), name="x").by_name[".BTF"].number
    (headers,) = struct.unpack_from("<Q", data, 0x28)  # e_shoff
    struct.pack_into("<I", data, headers + 64 * number, 0)  # sh_name
    with pytest.raises(FormatError, match="CO-RE relocations but no BTF"):
        read(bytes(data))


def test_commands_tell_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "many.bpf.o"
    path.write_bytes(changed(MANY, ".BTF", magic))
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr()
    assert "program" in out.out
    assert "damaged and left out" in out.err
