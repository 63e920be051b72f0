# SPDX-License-Identifier: BSD-2-Clause
"""Jump tables (.jumptables, gotox): read, placed behind subprograms, made into maps."""

from __future__ import annotations

import struct

import pytest

from pybpf.asm import disasm
from pybpf.compiler import Target, compile
from pybpf.compiler.listing import MAP_MARK, listing
from pybpf.compiler.needs import Needs, least
from pybpf.elf import read
from pybpf.errors import FormatError, RelocationError
from pybpf.plan import ops
from pybpf.plan.frozen import from_bytes, to_bytes
from pybpf.sys import abi
from tests.unit.jump_table_object import CASES, TABLE_AT, build


def _fields(value: bytes | int) -> int:
    assert isinstance(value, bytes)
    first, *rest = struct.unpack("=4I", value)
    assert rest == [0, 0, 0]
    return int(first)


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_each_program_gets_maps_of_its_own(relocate: str) -> None:
    spec = read(build()).with_program("through", autoload=True)
    assert spec.jump_tables == {0: (64, 80, 96), 24: (80, 96, 112)}
    plan = compile(spec, relocate=relocate)
    assert from_bytes(to_bytes(plan)) == plan
    steps = [op for op in plan.ops if not isinstance(op, (ops.BtfLoad, ops.RequireKernel))]
    names = ["MapCreate", "MapFill", "MapFreeze", "ProgLoad"]
    assert [type(op).__name__ for op in steps] == 2 * names
    # through: three slots of its own in front of the subprogram
    for group, shift in ((steps[:4], 0), (steps[4:], 3)):
        create, fill, freeze, load = group
        assert isinstance(create, ops.MapCreate)
        assert isinstance(fill, ops.MapFill)
        assert isinstance(freeze, ops.MapFreeze)
        assert isinstance(load, ops.ProgLoad)
        assert (create.type, create.value_size, create.max_entries) == (34, 16, 3)
        assert fill.map == freeze.map == create.dst
        assert [_fields(value) for _, value in fill.entries] == [shift + c for c in CASES]
        at = 8 * (TABLE_AT + shift)
        source = load.insns[at + 1] >> 4
        if relocate == "kernel":
            assert source == abi.BPF_PSEUDO_MAP_IDX_VALUE
            assert load.fd_array == (create.dst,)
        else:
            assert source == abi.BPF_PSEUDO_MAP_VALUE
            assert load.patches == ((TABLE_AT + shift, ops.PATCH_MAP_FD, create.dst),)


@pytest.mark.parametrize("order", ["<", ">"])
def test_listing(order: str) -> None:
    spec = read(build(order))
    found = listing(spec, Target.of_running())
    assert [p.error for p in found.programs] == [None, None]
    assert [(m.type, m.max_entries) for m in found.maps] == [(34, 3), (34, 3)]
    direct, through = (disasm(p.insns, spec.byteorder) for p in found.programs)
    assert direct[TABLE_AT] == f"3: (18) r3 = {MAP_MARK:#x}"
    assert through[TABLE_AT + 3] == f"6: (18) r3 = {MAP_MARK | 1:#x}"
    assert "7: (0d) gotox r3" in direct
    assert least(Needs(spec).program(spec.programs["direct"])) == "6.19"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"size": 20}, "entries have 8 bytes"),
        ({"size": 0}, "has 0 bytes"),
        ({"place": 4}, "entries have 8 bytes"),
        ({"size": 1 << 40}, "outside its section"),
        ({"place": 1 << 40}, "outside its section"),
    ],
)
def test_malformed_tables(more: dict[str, int], words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        read(build(**more))  # type: ignore[arg-type]
    assert ".jumptables" in str(caught.value)


@pytest.mark.parametrize("entry", [16, 1 << 40])
def test_an_entry_outside_the_function(entry: int) -> None:
    spec = read(build(entries=(8, entry)))
    with pytest.raises(RelocationError, match="no instruction of the function") as caught:
        compile(spec)
    assert caught.value.where["program"] == "direct"
    assert caught.value.where["insn"] == TABLE_AT
