# SPDX-License-Identifier: BSD-2-Clause
"""Rules of libbpf that the kernel's own selftests show: names, sections, what ends a load."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.compiler.compile import compile
from pybpf.compiler.externs import check_externs
from pybpf.compiler.listing import listing
from pybpf.compiler.target import Target
from pybpf.elf import sections
from pybpf.elf.data import kernel_name
from pybpf.elf.reader import read
from pybpf.errors import RelocationError
from pybpf.record import replace
from pybpf.reloc.externs import resolve
from pybpf.reloc.finish import arena_data_offset
from pybpf.spec import ExternSpec, MapSpec, ObjectSpec
from pybpf.sys import abi
from tests.unit.elfwriter import LOCAL, ElfWriter, insn

RETURN = insn(0xB7) + insn(0x95)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (".bss", "an_objec.bss"),
        (".kconfig", "an_obje.kconfig"),
        (".bss.a_name_that_is_long", ".bss.a_name_tha"),
        (".bss.a name", ".bss.a_name"),
        (".data.a_name_that_is_long", ".data.a_name_that_is_long"),
        (".percpu", ".percpu"),
    ],
)
def test_names_of_data_maps(section: str, name: str) -> None:
    assert kernel_name("an_object_of_ours", section) == name


@pytest.mark.parametrize(
    ("section", "kind", "attach"),
    [
        ("tp.s/syscalls/sys_enter_getcwd", abi.BPF_PROG_TYPE_TRACEPOINT, 0),
        ("tracepoint.s/a/b", abi.BPF_PROG_TYPE_TRACEPOINT, 0),
        ("raw_tp.s", abi.BPF_PROG_TYPE_RAW_TRACEPOINT, 0),
        ("raw_tracepoint.s/sys_enter", abi.BPF_PROG_TYPE_RAW_TRACEPOINT, 0),
        ("tp_btf.s/sys_enter", abi.BPF_PROG_TYPE_TRACING, abi.BPF_TRACE_RAW_TP),
    ],
)
def test_sleepable_tracepoints(section: str, kind: int, attach: int) -> None:
    found = sections.find(section)
    assert found is not None
    assert (found[0].type, found[0].attach_type) == (kind, attach)
    assert found[0].flags == abi.BPF_F_SLEEPABLE


def test_per_cpu_data() -> None:
    elf = ElfWriter()
    data = elf.section(".percpu", struct.pack("<Q", 7))
    code = elf.code("socket", insn(0x18, 1) + insn(0) + RETURN)
    elf.function("f", code, 0, 32)
    elf.relocate(code, 0, elf.symbol("counter", data, 0, 8))
    spec = read(elf.build(), name="o")
    found = spec.maps[".percpu"]
    assert found.type == abi.BPF_MAP_TYPE_PERCPU_ARRAY
    assert (found.value_size, found.max_entries, found.flags) == (8, 1, 0)
    told = listing(spec, Target(btf=Btf.parse(BtfWriter().build())))
    assert told.programs[0].error is None
    assert told.programs[0].insns[1] >> 4 == abi.BPF_PSEUDO_MAP_VALUE


def _with_callbacks(*names: str, bind: int = 1) -> ObjectSpec:
    elf = ElfWriter()
    text = elf.code(".text", RETURN * 2)
    code = elf.code("socket", RETURN * 2)
    elf.function("one", text, 0, 16, bind=bind)
    elf.function("two", text, 16, 16, bind=bind)
    elf.function("main", code, 0, 16)
    elf.function("other", code, 16, 16)
    types = BtfWriter()
    proto = types.add_proto(0, [])
    main = types.add_func("main", proto)
    types.add_func("one", proto)
    for name in names:
        types.add_decl_tag(f"exception_callback:{name}", main)
    elf.section(".BTF", types.build())
    return read(elf.build(), name="o")


def test_an_exception_callback_is_a_matter_of_its_program() -> None:
    kernel = Target(btf=Btf.parse(BtfWriter().build()))

    def errors(spec: ObjectSpec) -> list[bool]:
        return [p.error is not None for p in listing(spec, kernel).programs]

    spec = _with_callbacks("one")
    assert errors(spec) == [False, False]
    assert len(listing(spec, kernel).programs[0].insns) == 32
    # The verifier refuses a program with two; the loader appends none.
    spec = _with_callbacks("one", "two")
    assert errors(spec) == [False, False]
    assert len(listing(spec, kernel).programs[0].insns) == 16
    assert errors(_with_callbacks("three")) == [True, False]
    assert errors(_with_callbacks("one", bind=LOCAL)) == [True, False]


def _nothing() -> ObjectSpec:
    elf = ElfWriter()
    elf.section("license", b"GPL\0")
    return read(elf.build(), name="o")


def test_what_no_program_uses_is_needed_all_the_same() -> None:
    types = BtfWriter()
    kfunc = types.add_func("bpf_not_there", types.add_proto(0, []), 2)
    kernel = Target(btf=Btf.parse(BtfWriter().build()))
    spec = replace(_nothing(), btf=Btf.parse(types.build()))
    extern = ExternSpec("bpf_not_there", "kfunc", kfunc, False)
    spec = replace(spec, externs={"bpf_not_there": extern})
    with pytest.raises(RelocationError, match="neither in vmlinux") as caught:
        compile(spec, kernel, relocate="python")
    assert caught.value.errno == 22
    compile(replace(spec, externs={"x": replace(extern, weak=True)}), kernel, relocate="python")


def test_an_untyped_symbol_that_is_not_there() -> None:
    spec = replace(_nothing(), btf=Btf.parse(BtfWriter().build()))
    extern = ExternSpec("no_such_symbol_1", "ksym", 0, False)
    spec = replace(spec, externs={extern.name: extern})

    class Known(Target):
        def lacks(self, name: str) -> bool:
            return name == "no_such_symbol_1"

    def never(extern: ExternSpec) -> Any:
        raise AssertionError

    with pytest.raises(RelocationError, match="no symbol") as caught:
        check_externs(spec, never, Known())
    assert caught.value.errno == 3


def test_arena_variables() -> None:
    arena = MapSpec("arena", abi.BPF_MAP_TYPE_ARENA, 0, 0, 10, data=bytes(5000))
    assert arena_data_offset(arena, False) == 0
    assert arena_data_offset(arena, True) == 8 * 4096


def test_suggestions_end() -> None:
    """Each costs some 30 ms in a kernel's BTF; a malformed object may miss thousands of names."""
    types = BtfWriter()
    proto = types.add_proto(0, [])
    types.add_func("do_unlinkat", proto)
    kernel = Target(btf=Btf.parse(types.build())).types()
    spec = replace(_nothing(), btf=Btf.parse(types.build()))
    told = []
    for number in range(40):
        with pytest.raises(RelocationError) as caught:
            resolve(spec, ExternSpec(f"do_unlnkat___{number}", "kfunc", 2, False), kernel)
        told.append("did you mean do_unlinkat" in caught.value.message)
    assert told == [True] * 16 + [False] * 24
