# SPDX-License-Identifier: BSD-2-Clause
"""Linking: order of subprograms, distances of calls, what moves with a function."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pybpf.elf import read
from pybpf.errors import RelocationError
from pybpf.record import replace
from pybpf.reloc.insn import Code
from pybpf.reloc.link import Linked, Linker, link
from pybpf.spec import ObjectSpec, Ref
from tests.unit.elfwriter import EXIT, RETURN_0, ElfWriter, call, insn, load

OBJECTS = Path(__file__).parent.parent / "objects"


def linked(spec: ObjectSpec, name: str) -> tuple[Linked, list[str]]:
    found = link(spec, spec.programs[name])
    return found, [spec.functions[n].name for n, _ in found.functions]


def _chain(*bodies: tuple[str, list[str]]) -> bytes:
    """Subprograms a, b … each calling others in order, and a program ``main`` calling the first."""
    elf = ElfWriter()
    code = b"".join(call() * len(calls) + EXIT for _, calls in bodies)
    text = elf.code(".text", code)
    numbers, at, places = {}, 0, {}
    for name, calls in bodies:
        size = 8 * (len(calls) + 1)
        numbers[name] = elf.function(name, text, at, size)
        places[name] = at
        at += size
    for name, calls in bodies:
        for i, target in enumerate(calls):
            elf.relocate(text, places[name] + 8 * i, numbers[target])
    main = elf.code("socket", call() + EXIT)
    elf.function("main", main, 0, 16)
    elf.relocate(main, 0, numbers[bodies[0][0]])
    return elf.build()


def _targets(found: Linked) -> list[int]:
    raw = bytes(found.code.raw)
    out = []
    for slot in range(len(raw) // 8):
        code, regs, _, imm = struct.unpack_from("<BBhi", raw, 8 * slot)
        if code == 0x85 and regs >> 4 == 1:
            out.append(slot + imm + 1)
    return out


def test_depth_first_in_order_of_mention() -> None:
    spec = read(_chain(("a", ["c", "b"]), ("b", []), ("c", ["d"]), ("d", ["b"])), name="x")
    found, names = linked(spec, "main")
    assert names == ["main", "a", "c", "d", "b"]
    starts = {spec.functions[n].name: s for n, s in found.functions}
    assert _targets(found) == [starts[n] for n in ("a", "c", "b", "d", "b")]


def test_recursion_ends() -> None:
    spec = read(_chain(("a", ["b", "a"]), ("b", ["a"])), name="x")
    _, names = linked(spec, "main")
    assert names == ["main", "a", "b"]


def test_unreached_subprograms_stay_out() -> None:
    spec = read(_chain(("a", []), ("unused", ["a"])), name="x")
    assert linked(spec, "main")[1] == ["main", "a"]


def test_long_chains_need_no_recursion() -> None:
    count = 3000
    bodies = [(f"f{i}", [f"f{i + 1}"]) for i in range(count)] + [(f"f{count}", [])]
    spec = read(_chain(*bodies), name="x")
    assert len(linked(spec, "main")[1]) == count + 2


def test_records_move_with_their_function() -> None:
    spec = read(OBJECTS / "features.bpf.o")
    found, names = linked(spec, "first")
    assert names == ["first", "branch", "leaf", "weak_sub", "callback"]
    assert [slot for slot, _ in found.func_info] == [slot for _, slot in found.functions]
    starts = {row.insn for row in found.lines}
    assert all(start in starts for _, start in found.functions)
    assert found.lines == sorted(found.lines)
    for ref in found.refs:
        assert found.code.opcode(ref.insn) in (0x18, 0x85)
        assert ref.kind in ("map", "data", "extern")
    count = sum(len(spec.functions[n].insns) for n, _ in found.functions)
    assert len(found.code) == count // 8


def test_function_pointers() -> None:
    spec = read(OBJECTS / "features.bpf.o")
    found, _ = linked(spec, "first")
    raw = bytes(found.code.raw)
    loads = [
        (slot, struct.unpack_from("<i", raw, 8 * slot + 4)[0])
        for slot in range(len(raw) // 8)
        if raw[8 * slot] == 0x18 and raw[8 * slot + 1] >> 4 == 4
    ]
    callback = next(s for n, s in found.functions if spec.functions[n].name == "callback")
    assert [slot + imm + 1 for slot, imm in loads] == [callback]


def test_both_byte_orders_link_alike() -> None:
    little = read(OBJECTS / "features.bpf.o")
    big = read(OBJECTS / "features-be.bpf.o")
    for name in little.programs:
        a, names = linked(little, name)
        b, others = linked(big, name)
        assert names == others
        assert _swapped(bytes(a.code.raw)) == bytes(b.code.raw)


def _swapped(raw: bytes) -> bytes:
    out = bytearray()
    for code, regs, off, imm in struct.iter_unpack("<BBhi", raw):
        out += struct.pack(">BBhi", code, regs >> 4 | (regs & 15) << 4, off, imm)
    return bytes(out)


@pytest.mark.parametrize("order", ["little", "big"])
def test_code_changes_single_fields(order: str) -> None:
    sign = "<" if order == "little" else ">"
    code = Code(insn(0x18, 3, 0, 7, 1, sign) + bytes(8) + insn(0x95, order=sign), order)
    code.set_source(0, 2)
    code.set_wide(0, 0x1122334455667788)
    code.set_off(0, -2)
    assert bytes(code.raw[:16]) == insn(0x18, 3, 2, -2, 0x55667788, sign) + struct.pack(
        sign + "II", 0, 0x11223344
    )
    assert code.imm(0) == 0x55667788
    code.poison(0, 2, 2001000005)
    assert bytes(code.raw[:16]) == insn(0x85, imm=2001000005, order=sign) * 2
    assert bytes(code.raw[16:]) == insn(0x95, order=sign)


def test_programs_share_a_subprogram() -> None:
    elf = ElfWriter()
    text = elf.code(".text", RETURN_0)
    sub = elf.function("sub", text, 0, 16, bind=0)
    for name in ("socket", "xdp"):
        code = elf.code(name, call() + EXIT)
        elf.function(name, code, 0, 16)
        elf.relocate(code, 0, sub)
    spec = read(elf.build(), name="x")
    for name in ("socket", "xdp"):
        found, names = linked(spec, name)
        assert names == [name, "sub"]
        assert bytes(found.code.raw) == call(1) + EXIT + RETURN_0


def test_addresses_of_data_survive() -> None:
    elf = ElfWriter()
    code = elf.code("socket", load(0) + RETURN_0)
    elf.function("f", code, 0, 32)
    elf.relocate(code, 0, elf.symbol("x", elf.section(".data", bytes(16)), 12, 4))
    found, _ = linked(read(elf.build(), name="x"), "f")
    assert [(r.insn, r.kind, r.name, r.offset) for r in found.refs] == [(0, "data", ".data", 12)]


def test_calls_into_nowhere_fail_only_where_they_are_needed() -> None:
    elf = ElfWriter()
    elf.function("bad", elf.code("xdp", call(100) + EXIT), 0, 16)
    elf.function("good", elf.code("socket", RETURN_0), 0, 16)
    spec = read(elf.build(), name="x")
    assert linked(spec, "good")[1] == ["good"]
    with pytest.raises(RelocationError, match="calls byte 808 of section 'xdp'") as caught:
        linked(spec, "bad")
    assert caught.value.where["insn"] == 0


def test_programs_share_what_follows_them() -> None:
    """500 programs that each reach 1,000 subprograms: linked in the time of copying."""
    elf = ElfWriter()
    variable = elf.symbol("v", elf.section(".data", bytes(8), flags=3), 0, 8)
    body = load() + call() + EXIT
    text = elf.code(".text", body * 1000)
    names = [elf.function(f"f{i}", text, len(body) * i, len(body)) for i in range(1000)]
    for i in range(1000):
        elf.relocate(text, len(body) * i, variable)
        elf.relocate(text, len(body) * i + 16, names[min(i + 1, 999)])
    main = elf.code("socket", (call() + EXIT) * 500 + insn(0xB7) + call() + call() + EXIT)
    for i in range(500):
        elf.function(f"p{i}", main, 16 * i, 16)
        elf.relocate(main, 16 * i, names[0])
    elf.function("other", main, 8000, 32)
    elf.relocate(main, 8008, names[999])
    elf.relocate(main, 8016, names[0])
    spec = read(elf.build(), name="x")
    linker = Linker(spec)
    found = [linker.link(program) for program in spec.programs.values()]
    assert len({id(linked.tail) for linked in found}) == 2
    for linked in (found[0], found[499], found[500]):
        alone = link(spec, next(p for p in spec.programs.values() if p.function == linked.entry))
        assert alone.code.raw == linked.code.raw
        assert alone.functions == linked.functions
        assert alone.refs == linked.refs
        assert [linked.code.opcode(ref.insn) for ref in linked.refs] == [0x18] * 1000
    assert [n for n, _ in found[500].functions][1:3] == [names[999] - 2, names[0] - 2]
    assert linker.behind(spec.programs["p0"]) is found[0].tail
    starts = {spec.functions[n].name: s for n, s in found[500].functions}
    assert _targets(found[500])[:2] == [starts["f999"], starts["f0"]]


def test_a_subprogram_that_calls_its_program() -> None:
    """What follows then depends on the program, and is not shared."""
    elf = ElfWriter()
    main = elf.code("socket", insn(0xB7) + call() + EXIT + call() + EXIT)
    text = elf.code(".text", call(0) + EXIT)
    sub = elf.function("sub", text, 0, 16)
    first = elf.function("first", main, 0, 24)
    elf.function("second", main, 24, 16)
    elf.relocate(main, 8, sub)
    elf.relocate(main, 24, sub)
    spec = read(elf.build(), name="x")
    number = next(n for n, f in enumerate(spec.functions) if f.name == "sub")
    back = Ref(0, "call", "first", 0, spec.programs["first"].function)
    functions = [
        replace(f, refs=(back,)) if n == number else f for n, f in enumerate(spec.functions)
    ]
    spec = replace(spec, functions=tuple(functions))
    linker = Linker(spec)
    assert first
    assert _targets(linker.link(spec.programs["first"])) == [3, 0]
    tail = linker.behind(spec.programs["second"])
    assert [spec.functions[n].name for n in tail.starts] == ["sub", "first"]
    assert _targets(linker.link(spec.programs["second"])) == [2, 4, 2]
