# SPDX-License-Identifier: BSD-2-Clause
"""Specs → Plans, for a kernel written in BTF by the test."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter, swapped
from pybpf.compiler import Target, compile, compile_alternatives
from pybpf.compiler.listing import MAP_MARK, listing
from pybpf.elf import read
from pybpf.errors import CompileError, PlanError, RelocationError, UsageError
from pybpf.plan import ops
from pybpf.plan.explain import to_text
from pybpf.plan.frozen import from_bytes, to_bytes
from pybpf.plan.kconfig import contents, parse_config, parse_release
from pybpf.record import replace
from pybpf.spec import ObjectSpec

OBJECTS = Path(__file__).parent.parent / "objects"


def make_kernel(*, kfuncs: bool = True, variable: bool = False, parent_offset: int = 24) -> Btf:
    """vmlinux BTF with what features.bpf.o refers to."""
    w = BtfWriter("little")
    integer = w.add_int("int", 4, signed=True)
    void_proto = w.add_proto(0)
    task = integer + 2
    pointer = task + 1
    parent = ("real_parent", pointer, parent_offset * 8)
    members = [("pid", integer, 32), ("tgid", integer, 64), parent]
    assert w.add_struct("task_struct", 64, members) == task
    assert w.add_ptr(task) == pointer
    w.add_typedef("btf_trace_sched_process_exit", void_proto)
    if kfuncs:
        w.add_func("bpf_rcu_read_lock", void_proto)
        w.add_func("bpf_rcu_read_unlock", void_proto)
    if variable:
        w.add_var("no_such_variable", integer)
        w.add_func("no_such_kfunc", void_proto)
    return Btf.parse(w.build(), name="made")


CONFIG = {"CONFIG_BPF_SYSCALL": "y"}


def target(**more: object) -> Target:
    return Target(btf=make_kernel(**more), version=0x070304, config=CONFIG)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spec() -> ObjectSpec:
    return read(OBJECTS / "features.bpf.o")


def loads(plan: ops.Plan) -> dict[str, ops.ProgLoad]:
    return {op.name: op for op in plan.ops if isinstance(op, ops.ProgLoad)}


needs_little = pytest.mark.skipif(sys.byteorder != "little", reason="loads little-endian objects")


@needs_little
@pytest.mark.parametrize("mode", ["kernel", "python"])
def test_plans_are_deterministic(spec: ObjectSpec, mode: str) -> None:
    one = compile(spec, target(), relocate=mode)
    two = compile(read(OBJECTS / "features.bpf.o"), target(), relocate=mode)
    assert one == two
    assert to_bytes(one) == to_bytes(two)
    assert from_bytes(to_bytes(one)) == one


@needs_little
def test_order_of_operations(spec: ObjectSpec) -> None:
    plan = compile(spec, target())
    kinds = [type(op).__name__ for op in plan.ops]
    first = {kind: kinds.index(kind) for kind in set(kinds)}
    assert kinds[0] == "BtfLoad"
    assert first["MapCreate"] < first["MapFill"] < first["Lookup"] < first["ProgLoad"]
    # the program array can be filled only when its programs are there
    assert isinstance(plan.ops[-1], ops.MapFill)
    assert plan.ops[-1].map == plan.maps["jumps"][0]
    assert plan.ops[-1].entries == ((struct.pack("<I", 2), plan.programs["tail_target"]),)
    frozen = {op.map for op in plan.ops if isinstance(op, ops.MapFreeze)}
    assert frozen == {plan.maps[n][0] for n in (".rodata", ".rodata.table", ".kconfig")}
    outer = next(o for o in plan.ops if isinstance(o, ops.MapCreate) and o.name == "outer")
    assert outer.inner is not None
    filled = {o.map: o.entries for o in plan.ops if isinstance(o, ops.MapFill)}
    assert filled[plan.maps["outer"][0]] == (
        (struct.pack("<I", 1), plan.maps["inner_a"][0]),
        (struct.pack("<I", 3), plan.maps["inner_b"][0]),
    )
    assert plan.maps[".bss"][0] not in filled


@needs_little
def test_relocation_by_the_kernel_reads_no_kernel_btf(spec: ObjectSpec) -> None:
    class Closed(Target):
        @property
        def vmlinux(self) -> Btf:
            raise AssertionError("the kernel's BTF was opened")

    plan = compile(spec, Closed(version=1, config=CONFIG), relocate="kernel")
    tracing = loads(plan)["tracing"]
    assert tracing.core_relos
    assert tracing.fd_array
    assert tracing.attach_symbol is not None
    (lookup,) = [op for op in plan.ops if isinstance(op, ops.Lookup)]
    asked = {(name, kind, weak) for _, name, kind, _, weak in lookup.names}
    assert ("btf_trace_sched_process_exit", 8, False) in asked
    assert ("no_such_kfunc", 12, True) in asked
    assert ("no_such_variable", 14, True) in asked
    assert ("bpf_rcu_read_lock", 12, False) in asked


@needs_little
def test_relocation_in_python_decides_everything(spec: ObjectSpec) -> None:
    kernel = target()
    plan = compile(spec, kernel, relocate="python")
    assert not [op for op in plan.ops if isinstance(op, ops.Lookup)]
    tracing = loads(plan)["tracing"]
    assert tracing.core_relos == b""
    assert tracing.attach_btf_id == kernel.vmlinux.find("btf_trace_sched_process_exit")[0]
    kinds = {kind for _, kind, _ in tracing.patches}
    assert kinds == {ops.PATCH_MAP_FD, ops.PATCH_ADDR_WEAK}
    calls = [
        imm
        for code, regs, _, imm in struct.iter_unpack("<BBhI", tracing.insns)
        if code == 0x85 and regs >> 4 == 2
    ]
    assert calls == [
        kernel.vmlinux.find("bpf_rcu_read_lock")[0],
        kernel.vmlinux.find("bpf_rcu_read_unlock")[0],
    ]
    poisoned = [
        imm for code, regs, _, imm in struct.iter_unpack("<BBhI", tracing.insns)
        if code == 0x85 and imm >= 2000000000
    ]  # fmt: skip
    assert poisoned == [2002000000 + list(spec.externs).index("no_such_kfunc")]


@needs_little
def test_weak_externs_that_are_there(spec: ObjectSpec) -> None:
    kernel = target(variable=True)
    tracing = loads(compile(spec, kernel, relocate="python"))["tracing"]
    typed = [
        imm for code, regs, _, imm in struct.iter_unpack("<BBhI", tracing.insns)
        if code == 0x18 and regs >> 4 == 3
    ]  # fmt: skip
    ids = {kernel.vmlinux.find(n)[0] for n in ("no_such_variable", "no_such_kfunc")}
    assert set(typed) == ids


def test_missing_strong_kfunc(spec: ObjectSpec) -> None:
    with pytest.raises(RelocationError, match="'bpf_rcu_read_lock' is neither") as caught:
        compile(spec, target(kfuncs=False), relocate="python")
    assert caught.value.where["program"] == "tracing"
    assert caught.value.hint


def test_missing_attach_target(spec: ObjectSpec) -> None:
    w = BtfWriter("little")
    w.add_int("int", 4)
    with pytest.raises(RelocationError) as caught:
        compile(
            spec.with_program("first", autoload=False).with_program("tail_target", autoload=False),
            Target(btf=Btf.parse(w.build()), version=1, config=CONFIG),
            relocate="python",
        )
    assert caught.value.where["program"] == "tracing"


def test_listing_marks_maps_and_keeps_going(spec: ObjectSpec) -> None:
    found = listing(spec, target(kfuncs=False))
    by_name = {p.program.name: p for p in found.programs}
    assert by_name["tracing"].error is not None
    assert by_name["first"].error is None
    names = [m.name for m in found.maps]
    marked = {
        names[imm & 0xFFFFFF]
        for code, regs, _, imm in struct.iter_unpack("<BBhI", by_name["first"].insns)
        if code == 0x18 and regs >> 4 in (1, 2) and imm & ~0xFFFFFF == MAP_MARK
    }
    assert {"outer", "bloom", "jumps", ".rodata", ".data", ".bss"} <= marked


def test_offsets_follow_the_kernel(spec: ObjectSpec) -> None:
    def code(offset: int) -> bytes:
        found = listing(spec, target(parent_offset=offset))
        return next(p.insns for p in found.programs if p.program.name == "tracing")

    one, two = code(24), code(48)
    differ = [i for i in range(0, len(one), 8) if one[i : i + 8] != two[i : i + 8]]
    assert len(differ) == 1
    at = differ[0]
    assert (one[at], two[at]) == (0x79, 0x79)  # r = *(u64 *)(r + off)
    assert struct.unpack_from("<h", one, at + 2) == (24,)
    assert struct.unpack_from("<h", two, at + 2) == (48,)


def test_big_endian_lists_the_same_code(spec: ObjectSpec) -> None:
    other = read(OBJECTS / "features-be.bpf.o")
    kernel = make_kernel()
    big = Target(btf=Btf.parse(swapped(kernel), name="made"))
    mine = {p.program.name: p.insns for p in listing(spec, Target(btf=kernel)).programs}
    theirs = {p.program.name: p.insns for p in listing(other, big).programs}
    for name, insns in mine.items():
        flipped = b"".join(
            struct.pack(">BBhi", code, regs >> 4 | (regs & 15) << 4, off, imm)
            for code, regs, off, imm in struct.iter_unpack("<BBhi", insns)
        )
        assert flipped == theirs[name], name


def test_foreign_endian_objects_do_not_load() -> None:
    foreign = "features-be.bpf.o" if sys.byteorder == "little" else "features.bpf.o"
    with pytest.raises(CompileError, match="-endian, this machine is"):
        compile(read(OBJECTS / foreign), target())


@needs_little
def test_kconfig_values(spec: ObjectSpec) -> None:
    def kconfig(config: dict[str, str]) -> bytes:
        plan = compile(spec, Target(btf=make_kernel(), version=0x070304, config=config))
        slot = plan.maps[".kconfig"][0]
        (fill,) = [o for o in plan.ops if isinstance(o, ops.MapFill) and o.map == slot]
        return bytes(fill.entries[0][1])

    assert kconfig({}) == struct.pack("<IBB", 0x070304, 0, 0)
    assert kconfig({"CONFIG_BPF_SYSCALL": "y"}) == struct.pack("<IBB", 0x070304, ord("y"), 0)
    assert kconfig({"CONFIG_SURELY_NOT_THERE": "y"}) == struct.pack("<IBB", 0x070304, 0, 1)
    with pytest.raises(PlanError, match="cannot say m"):
        kconfig({"CONFIG_SURELY_NOT_THERE": "m"})
    with pytest.raises(PlanError, match="does not fit"):
        kconfig({"CONFIG_BPF_SYSCALL": "1000"})


@needs_little
def test_bundles_ask_the_kernel_they_run_on(spec: ObjectSpec) -> None:
    plan = compile(spec)
    (fill,) = [op for op in plan.ops if isinstance(op, ops.KconfigFill)]
    assert fill.map == plan.maps[".kconfig"][0]
    assert fill.values == (
        ("LINUX_KERNEL_VERSION", 0, 4, "version", False),
        ("CONFIG_BPF_SYSCALL", 4, 1, "char", True),
        ("CONFIG_SURELY_NOT_THERE", 5, 1, "bool", True),
    )
    assert from_bytes(to_bytes(plan)) == plan


@pytest.mark.parametrize(
    ("value", "text", "raw"),
    [
        (("A", 0, 1, "bool", False), "y", b"\1"),
        (("A", 0, 4, "tristate", False), "m", b"\2\0\0\0"),
        (("A", 0, 1, "char", False), "m", b"m"),
        (("A", 0, 2, "int", False), "-2", b"\xfe\xff"),
        (("A", 0, 8, "uint", False), "0xffffffffffffffff", b"\xff" * 8),
        (("A", 0, 6, "text", False), '"ab c"', b"ab c\0\0"),
        (("A", 0, 3, "text", False), '"abcdef"', b"ab\0"),
    ],
)
def test_configuration_values(
    value: tuple[str, int, int, str, bool], text: str, raw: bytes
) -> None:
    assert contents([value], None, lambda: {"A": text}, "little") == raw


@pytest.mark.parametrize(
    ("value", "text", "words"),
    [
        (("A", 0, 4, "int", False), "y", "neither bool"),
        (("A", 0, 4, "bool", False), "1", "no integer"),
        (("A", 0, 1, "uint", False), "256", "1 bytes wide"),
        (("A", 0, 4, "int", False), '"x"', "no array of char"),
        (("A", 0, 4, "int", False), "xyz", "no type"),
        (("B", 0, 4, "int", False), "1", "no such value"),
    ],
)
def test_configuration_values_that_do_not_fit(
    value: tuple[str, int, int, str, bool], text: str, words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        contents([value], None, lambda: {"A": text}, "little")


def test_weak_values_may_be_missing() -> None:
    def none() -> dict[str, str]:
        raise PlanError("there is none")

    assert contents([("B", 0, 4, "int", True)], None, dict, "little") == bytes(4)
    assert contents([("B", 0, 4, "int", True)], None, none, "little") == bytes(4)
    with pytest.raises(PlanError, match="there is none"):
        contents([("B", 0, 4, "int", False)], None, none, "little")
    both = [("LINUX_KERNEL_VERSION", 0, 4, "version", False), ("C", 4, 1, "cookie", False)]
    assert contents(both, 0x050F01, None, "little") == struct.pack("<IB", 0x050F01, 1)
    assert contents(both, 0x050E01, None, "little") == struct.pack("<IB", 0x050E01, 0)


def test_kernel_description() -> None:
    assert parse_config('# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C="x=y"\n') == {
        "CONFIG_B": "y",
        "CONFIG_C": '"x=y"',
    }
    assert parse_release("6.12.107+deb13-amd64") == 0x060C6B
    assert parse_release("7.3") == 0x070300
    assert parse_release("5.10.300") == 0x050AFF


@needs_little
def test_pins_and_layouts(spec: ObjectSpec) -> None:
    plan = compile(spec, target(), pin_root="/run/bpf", export=["struct pair"])
    created = {o.name: o for o in plan.ops if isinstance(o, ops.MapCreate)}
    assert created["pinned"].pin_path == "/run/bpf/pinned"
    assert created["ring"].pin_path is None
    assert plan.layouts["struct pair"][0] == "struct"
    assert plan.variables["start"][:3] == (".data", 0, 4)
    assert plan.variables["start"][3] == ("int", 4, True)
    with pytest.raises(CompileError, match="no type 'struct nothing'"):
        compile(spec, target(), export=["struct nothing"])


@needs_little
def test_alternatives(spec: ObjectSpec) -> None:
    other = spec.with_variables({"limit": 3})
    plan = compile_alternatives([("seven", spec), ("three", other)], target(), label="limit")
    (choose,) = plan.ops
    assert isinstance(choose, ops.Choose)
    assert [label for label, _ in choose.alternatives] == ["seven", "three"]
    single = compile(spec, target())
    assert plan.maps == single.maps
    assert plan.slots == single.slots
    assert [label for label, operations in choose.alternatives if operations == single.ops] == [
        "seven"
    ]
    with pytest.raises(CompileError, match="differ in their programs"):
        compile_alternatives(
            [("all", spec), ("less", spec.with_program("first", autoload=False))], target()
        )
    with pytest.raises(UsageError):
        compile_alternatives([], target())


@needs_little
def test_programs_of_a_module_are_conditional(spec: ObjectSpec) -> None:
    plan = compile(spec.with_program("tracing", when_module="dm_mod"), target())
    (when,) = [op for op in plan.ops if isinstance(op, ops.When)]
    assert when.condition == ("module", "dm_mod")
    assert [type(op).__name__ for op in when.then] == ["Lookup", "ProgLoad"]
    (attach,) = [op for op in plan.attach if isinstance(op, ops.When)]
    assert attach.condition == ("module", "dm_mod")


@needs_little
def test_unknown_sections_are_told(spec: ObjectSpec) -> None:
    broken = spec.with_program("first", type=0, section="raw_tpp/x")
    with pytest.raises(CompileError, match="raw_tp") as caught:
        compile(broken, target())
    assert caught.value.where["program"] == "first"


@needs_little
def test_maps_that_are_not_created_poison_their_users(spec: ObjectSpec) -> None:
    plan = compile(spec.with_map("ring", autocreate=False), target(), relocate="python")
    assert "ring" not in plan.maps
    calls = [
        imm for code, _, _, imm in struct.iter_unpack("<BBhI", loads(plan)["tail_target"].insns)
        if code == 0x85
    ]  # fmt: skip
    assert calls.count(2001000000 + list(spec.maps).index("ring")) == 2


def test_wrong_mode(spec: ObjectSpec) -> None:
    with pytest.raises(UsageError, match="relocate='both'"):
        compile(spec, target(), relocate="both")


def _tcp(*, undo_first: bool = False, name_size: int = 16, with_control: bool = True) -> Target:
    """A kernel with struct tcp_congestion_ops, its members in another order."""
    w = BtfWriter("little")
    char = w.add_int("char", 1, char=True)
    proto = w.add_proto(0)
    pointer = w.add_ptr(proto)
    array = w.add_array(char, char, name_size)
    order = ["undo_cwnd", "ssthresh"] if undo_first else ["ssthresh", "undo_cwnd"]
    members = [(n, pointer, 64 * i) for i, n in enumerate([*order, "cong_avoid"])]
    control = w.add_struct("tcp_congestion_ops", 24 + name_size, [*members, ("name", array, 192)])
    if with_control:
        w.add_struct("bpf_struct_ops_tcp_congestion_ops", 64 + 24 + name_size,
                     [("common", pointer, 0), ("data", control, 512)])  # fmt: skip
    return Target(btf=Btf.parse(w.build(), name="made"))


def test_struct_ops_follow_the_kernel() -> None:
    found = read(OBJECTS / "struct_ops.bpf.o")
    assert found.maps["test_control"].members == (
        ("ssthresh", "threshold"), ("undo_cwnd", "undo"), ("cong_avoid", "avoid"),
    )  # fmt: skip
    assert not found.maps["spare_control"].autocreate
    plain = compile(found, _tcp(), relocate="python")
    (fill,) = [op for op in plain.ops if isinstance(op, ops.StructOpsFill)]
    assert fill.data == bytes(64 + 24) + b"pybpf_test".ljust(16, b"\0")
    slots = plain.programs
    assert set(fill.programs) == {
        (64, slots["threshold"]), (72, slots["undo"]), (80, slots["avoid"]),
    }  # fmt: skip
    assert {n: p.expected_attach_type for n, p in loads(plain).items()} == {
        "threshold": 0, "undo": 1, "avoid": 2,
    }  # fmt: skip
    assert from_bytes(to_bytes(plain)) == plain
    turned = compile(found, _tcp(undo_first=True), relocate="python")
    assert loads(turned)["undo"].expected_attach_type == 0
    (link,) = turned.attach
    assert isinstance(link, ops.LinkCreate)
    assert (link.how, link.prog) == ("struct_ops", turned.maps["test_control"][0])


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (_tcp(name_size=20), "another size"),
        (_tcp(with_control=False), "has no struct bpf_struct_ops_tcp_congestion_ops"),
    ],
)
def test_struct_ops_that_do_not_fit(kernel: Target, words: str) -> None:
    found = read(OBJECTS / "struct_ops.bpf.o")
    with pytest.raises(RelocationError, match=words) as caught:
        compile(found, kernel)
    assert caught.value.where["map"] == "test_control"
    assert all(p.error is not None for p in listing(found, kernel).programs)


def test_struct_ops_without_a_link() -> None:
    """Its value is set by attaching, not by loading: setting it puts it into force."""
    found = read(OBJECTS / "struct_ops.bpf.o")
    assert not found.maps["old_control"].autocreate
    found = found.with_map("old_control", autocreate=True)
    plan = compile(found, _tcp(), relocate="python")
    (at_load,) = [op for op in plan.ops if isinstance(op, ops.StructOpsFill)]
    assert not at_load.register
    assert at_load.map == plan.maps["test_control"][0]
    register, link = plan.attach
    assert isinstance(register, ops.StructOpsFill)
    assert register.register
    assert register.map == plan.maps["old_control"][0]
    assert register.data[88:] == b"pybpf_old".ljust(16, b"\0")
    assert isinstance(link, ops.LinkCreate)
    assert set(plan.links) == {"test_control"}
    assert from_bytes(to_bytes(plan)) == plan
    assert "into force until the value is deleted" in to_text(plan)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (lambda w, pointer: w.add_int("long", 8), "is of kind ptr, in the kernel's .* int"),
        (lambda w, pointer: None, "has no member 'undo_cwnd', which is set"),
    ],
)
def test_struct_ops_that_lack_a_member(member: Callable[..., int | None], words: str) -> None:
    w = BtfWriter("little")
    pointer = w.add_ptr(w.add_proto(0))
    other = member(w, pointer)
    char = w.add_int("char", 1, char=True)
    name = w.add_array(char, char, 16)
    members = [("ssthresh", pointer, 0), ("cong_avoid", pointer, 64), ("name", name, 192)]
    if other is not None:
        members.append(("undo_cwnd", other, 128))
    control = w.add_struct("tcp_congestion_ops", 40, members)
    w.add_struct("bpf_struct_ops_tcp_congestion_ops", 104,
                 [("common", pointer, 0), ("data", control, 512)])  # fmt: skip
    found = listing(read(OBJECTS / "struct_ops.bpf.o"), Target(btf=w.btf()))
    # The kernel's size, as libbpf tells it, and each program's own error.
    assert {m.name: m.value_size for m in found.maps}["test_control"] == 104
    for program in found.programs:
        assert program.error is not None
        assert program.error.where["program"] == program.program.name
        assert re.search(words, str(program.error))


def test_a_program_in_two_struct_ops_maps_that_differ() -> None:
    found = read(OBJECTS / "struct_ops.bpf.o")
    control = found.maps["test_control"]
    again = replace(control, name="again", members=(("undo_cwnd", "threshold"),))
    both = replace(found, maps={**found.maps, "again": again})
    with pytest.raises(RelocationError, match="in two maps must be the same member") as caught:
        compile(both, _tcp())
    assert (caught.value.where["map"], caught.value.where["program"]) == ("again", "threshold")


def test_a_shared_subprogram_fails_in_the_name_of_each_program(spec: ObjectSpec) -> None:
    wrong = next(c for f in spec.functions for c in f.core)._replace(access="0:99")
    functions = (replace(f, core=(wrong,)) if f.name == "leaf" else f for f in spec.functions)
    found = listing(replace(spec, functions=tuple(functions)), target())
    failed = [p for p in found.programs if p.error is not None]
    assert len(failed) > 1
    for program in failed:
        assert program.error is not None
        assert program.error.where["program"] == program.program.name
