# SPDX-License-Identifier: BSD-2-Clause
"""What a real object says: maps, data, variables, functions, references, externs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pybpf.elf import object_name, read
from pybpf.elf.btf_maps import ring_size
from pybpf.elf.data import kernel_name
from pybpf.errors import FormatError, UsageError
from pybpf.spec import ObjectSpec
from tests.unit.elfwriter import EXIT, RETURN_0, ElfWriter, call, insn, load

OBJECTS = Path(__file__).parent.parent / "objects"


@pytest.fixture(scope="module")
def spec() -> ObjectSpec:
    return read(OBJECTS / "features.bpf.o")


def test_maps(spec: ObjectSpec) -> None:
    outer = spec.maps["outer"]
    assert outer.inner is not None
    assert (outer.type, outer.key_size, outer.value_size, outer.max_entries) == (12, 4, 4, 4)
    assert (outer.inner.type, outer.inner.key_size, outer.inner.value_size) == (1, 4, 8)
    assert outer.initial == ((struct.pack("<I", 1), "inner_a"), (struct.pack("<I", 3), "inner_b"))
    assert spec.maps["jumps"].initial == ((struct.pack("<I", 2), "tail_target"),)
    assert spec.maps["bloom"].extra == 3
    assert spec.maps["pinned"].pin == 1
    assert spec.maps["ring"].max_entries == 8192


def test_data_maps(spec: ObjectSpec) -> None:
    rodata, bss = spec.maps[".rodata"], spec.maps[".bss"]
    assert rodata.kernel_name == "features.rodata"
    assert rodata.frozen
    assert rodata.flags == 0x480  # RDONLY_PROG | MMAPABLE
    assert (bss.data, bss.value_size) == (b"", 12)  # zeroes are not written out
    assert not bss.frozen
    assert spec.maps[".data.shared"].kernel_name == ".data.shared"
    assert spec.maps[".rodata.table"].flags == 0x480


def test_variables(spec: ObjectSpec) -> None:
    assert spec.value("limit") == 7
    assert spec.value("setting") == {"left": 1, "right": -2}
    assert spec.value("label") == b"label\0\0\0"
    assert spec.value("start") == -5
    assert spec.value("table") == [1, 2, 3, 4]
    changed = spec.with_variables(
        {"limit": 9, "setting": {"right": 5}, "label": b"ab", "start": -1, "table": [4, 3, 2, 1]}
    )
    assert changed.value("limit") == 9
    assert changed.value("setting") == {"left": 0, "right": 5}
    assert changed.value("label") == b"ab" + bytes(6)
    assert changed.value("table") == [4, 3, 2, 1]
    assert spec.value("limit") == 7  # the original stays


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"limitt": 1}, "no variable"),
        ({"limit": 1 << 32}, "fit|range"),
        ({"start": 1 << 31}, "fit|range"),
        ({"limit": b"123"}, "3 bytes given where 4"),
        ({"label": b"123456789"}, "9 bytes given where 8"),
        ({"setting": {"middle": 1}}, "middle"),
    ],
)
def test_values_that_do_not_fit(spec: ObjectSpec, values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec.with_variables(values)


def test_editing(spec: ObjectSpec) -> None:
    assert spec.with_map("ring", max_entries=4096).maps["ring"].max_entries == 4096
    assert not spec.with_program("first", autoload=False).programs["first"].autoload
    with pytest.raises(UsageError, match="no map 'rings'; maps: inner_a"):
        spec.with_map("rings", max_entries=1)
    with pytest.raises(UsageError, match="no field 'entries'"):
        spec.with_map("ring", entries=1)
    with pytest.raises(UsageError, match="one entry"):
        spec.with_map(".bss", max_entries=2)
    with pytest.raises(UsageError, match="no program"):
        spec.with_program("frist", autoload=False)


def test_programs(spec: ObjectSpec) -> None:
    first = spec.programs["first"]
    assert (first.type, first.section) == (17, "raw_tp/sched_switch")
    assert first.attach_to == "sched_switch"
    optional = spec.programs["optional"]
    assert (optional.section, optional.autoload) == ("socket", False)
    tracing = spec.programs["tracing"]
    assert (tracing.type, tracing.expected_attach_type) == (26, 23)


def test_lsm_sections() -> None:
    found = read(OBJECTS / "lsm.bpf.o").programs
    sleepable, plain = found["check_exec"], found["check_open"]
    assert (sleepable.type, sleepable.expected_attach_type, sleepable.flags) == (29, 27, 16)
    assert sleepable.attach_to == "bprm_check_security"
    assert (plain.type, plain.expected_attach_type, plain.flags) == (29, 27, 0)


def test_functions(spec: ObjectSpec) -> None:
    by_name = {f.name: f for f in spec.functions}
    assert not by_name["leaf"].global_
    assert by_name["global_sub"].global_
    assert not by_name["hidden_sub"].global_
    assert by_name["weak_sub"].weak
    assert all(f.type_id for f in spec.functions)
    assert all(f.lines and f.lines[0].insn == 0 for f in spec.functions)
    assert len(by_name["tracing"].core) >= 3
    calls = [r.name for r in by_name["branch"].refs if r.kind == "call"]
    assert calls == ["leaf", "leaf"]
    assert [r.name for r in by_name["first"].refs if r.kind == "func"] == ["callback"]


def test_externs(spec: ObjectSpec) -> None:
    externs = spec.externs
    assert list(externs)[:3] == ["LINUX_KERNEL_VERSION", "CONFIG_BPF_SYSCALL",
                                 "CONFIG_SURELY_NOT_THERE"]  # fmt: skip
    assert {e.kind for e in externs.values()} == {"kconfig", "ksym", "kfunc"}
    assert externs["no_such_kfunc"].weak
    assert not externs["bpf_rcu_read_lock"].weak
    assert [externs[n].offset for n in list(externs)[:3]] == [0, 4, 5]


def test_big_endian_says_the_same(spec: ObjectSpec) -> None:
    other = read(OBJECTS / "features-be.bpf.o")
    assert other.byteorder == "big"
    for name, found in spec.maps.items():
        twin = other.maps[name]
        assert (found.type, found.key_size, found.value_size, found.max_entries, found.flags) == (
            twin.type, twin.key_size, twin.value_size, twin.max_entries, twin.flags
        )  # fmt: skip
    assert {n: other.value(n) for n in ("limit", "setting", "start", "shared_value")} == {
        n: spec.value(n) for n in ("limit", "setting", "start", "shared_value")
    }
    assert [(f.name, len(f.insns)) for f in other.functions] == [
        (f.name, len(f.insns)) for f in spec.functions
    ]


@pytest.mark.parametrize(
    ("stem", "section", "name"),
    [
        ("opensnoop-libbp", ".rodata", "opensnoo.rodata"),
        ("x", ".bss", "x.bss"),
        ("opensnoop-libbp", ".bss", "opensnoo.bss"),
        ("capable", ".kconfig", "capable.kconfig"),
        ("capabilities", ".kconfig", "capabil.kconfig"),
        ("a b-c", ".data", "a_b_c.data"),
        ("x", ".data.custom", ".data.custom"),
    ],
)
def test_kernel_names(stem: str, section: str, name: str) -> None:
    assert kernel_name(stem, section) == name
    assert len(name) <= 15


def test_object_names() -> None:
    assert object_name("/a/opensnoop-libbpf.56258.bpf.o") == "opensnoop-libbp"
    assert object_name("x.bpf.o") == "x"


@pytest.mark.parametrize(
    ("asked", "given"),
    [(0, 0), (1, 4096), (4096, 4096), (5000, 8192), (8192, 8192), (12288, 16384), (4095, 4096)],
)
def test_ring_sizes(asked: int, given: int) -> None:
    assert ring_size(asked) == given


def test_static_data_is_found_by_addend() -> None:
    elf = ElfWriter()
    code = elf.code("socket", load(4) + RETURN_0)
    elf.function("f", code, 0, 32)
    data = elf.section(".data", bytes(8))
    elf.relocate(code, 0, elf.symbol("", data, kind=3, bind=0))
    (ref,) = read(elf.build(), name="x").functions[0].refs
    assert (ref.kind, ref.name, ref.offset) == ("data", ".data", 4)


def test_calls_of_static_functions_through_the_section_symbol() -> None:
    elf = ElfWriter()
    text = elf.code(".text", RETURN_0 + RETURN_0)
    elf.function("a", text, 0, 16, bind=0)
    elf.function("b", text, 16, 16, bind=0)
    code = elf.code("socket", call(1) + EXIT)
    elf.function("f", code, 0, 16)
    elf.relocate(code, 0, elf.symbol("", text, kind=3, bind=0))
    found = read(elf.build(), name="x")
    (ref,) = next(f for f in found.functions if f.name == "f").refs
    assert (ref.kind, found.functions[ref.function].name) == ("call", "b")


def test_calls_between_programs_are_refused() -> None:
    elf = ElfWriter()
    other = elf.code("xdp", RETURN_0)
    target = elf.function("other", other, 0, 16)
    code = elf.code("socket", call() + EXIT)
    elf.function("f", code, 0, 16)
    elf.relocate(code, 0, target)
    with pytest.raises(FormatError, match="refers to 'other' in section 'xdp'"):
        read(elf.build(), name="x")


def test_dead_code_of_replaced_weak_functions_is_ignored() -> None:
    elf = ElfWriter()
    code = elf.code("socket", RETURN_0 + insn(0x85, 0, 1, 0, -1) + EXIT)
    elf.function("f", code, 0, 16)
    elf.relocate(code, 16, elf.symbol("x", elf.section(".data", b"1234"), 0, 4))
    assert read(elf.build(), name="x").functions[0].refs == ()


def test_custom_bss_is_a_map() -> None:
    elf = ElfWriter()
    elf.section(".bss.extra", type=8, size=24)
    spec = read(elf.build(), name="x")
    assert spec.maps[".bss.extra"].value_size == 24
    assert spec.maps[".bss.extra"].data == b""


def _legacy(definition: bytes, *, symbols: int = 1) -> bytes:
    elf = ElfWriter()
    maps = elf.section("maps", definition * symbols)
    code = elf.code("socket", load() + RETURN_0)
    elf.function("f", code, 0, 32)
    numbers = [
        elf.symbol(f"m{i}", maps, i * len(definition), len(definition)) for i in range(symbols)
    ]
    elf.relocate(code, 0, numbers[-1])
    return elf.build()


@pytest.mark.parametrize("padding", [0, 8])
def test_maps_of_the_time_before_btf(padding: int) -> None:
    spec = read(_legacy(struct.pack("<5I", 1, 4, 8, 100, 1) + bytes(padding), symbols=2), name="x")
    assert list(spec.maps) == ["m0", "m1"]
    found = spec.maps["m1"]
    assert (found.type, found.key_size, found.value_size, found.max_entries, found.flags) == (
        1, 4, 8, 100, 1,
    )  # fmt: skip
    (ref,) = spec.functions[0].refs
    assert (ref.kind, ref.name) == ("map", "m1")


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (struct.pack("<4I", 1, 4, 8, 100), "has 16 bytes"),
        (struct.pack("<5I", 0, 4, 8, 100, 0), "no type"),
        (struct.pack("<9I", 1, 4, 8, 100, 0, 1, 2, 0, 0), "says more"),
    ],
)
def test_malformed_old_maps(definition: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(_legacy(definition), name="x")


@pytest.mark.parametrize(("loads", "called"), [(0, True), (1, False), (2, True), (3, False)])
def test_what_looks_like_a_call_in_a_64_bit_load_is_none(loads: int, called: bool) -> None:
    elf = ElfWriter()
    # Each 0x18 takes the slot behind it: after an odd number of them the call is a number's half.
    code = insn(0x18) * loads + call(0) + EXIT
    text = elf.code(".text", code + RETURN_0)
    elf.function("f", text, 0, len(code))
    elf.function("g", text, len(code) - 8, 8)
    spec = read(elf.build(), name="x")
    assert [(ref.insn, ref.name) for ref in spec.functions[0].refs] == [(loads, "g")] * called
