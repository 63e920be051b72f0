# SPDX-License-Identifier: BSD-2-Clause
"""The executor: alternatives, conditions, look-ups, variables, reuse, errors; and its imports."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pybpf.errors import KernelError, PlanError, SymbolNotFoundError, UsageError, VerifierError
from pybpf.kernel import btf_lookup
from pybpf.kernel.map import Map
from pybpf.plan import frozen, ops
from pybpf.plan.run import run
from pybpf.sys import abi
from tests.kernel.helpers import (
    EXIT,
    HASH,
    TRACING,
    array,
    call,
    insn,
    ldimm64,
    mov_reg,
    plan,
    prog,
    returns,
    settle,
    small_btf,
)
from tests.kernel.lacks import need

pytestmark = pytest.mark.kernel

BAD = mov_reg(0, 5) + EXIT
TASK = ("task_struct", abi.BTF_KIND_STRUCT, None)


def lookup(*names: tuple[str, int, str | None, bool]) -> ops.Lookup:
    return ops.Lookup(names=tuple((i, *name) for i, name in enumerate(names)))


# --- look-ups ---------------------------------------------------------------------------------


def test_the_kernel_and_its_btf_agree() -> None:
    queries = [
        TASK,
        ("bpf_lsm_file_open", abi.BTF_KIND_FUNC, None),
        ("file", abi.BTF_KIND_STRUCT, None),
        ("file", abi.BTF_KIND_FUNC, None),
        ("btf_trace_sched_switch", abi.BTF_KIND_TYPEDEF, None),
        ("bpf_map_type", abi.BTF_KIND_ENUM, None),
        ("no_such_name", abi.BTF_KIND_FUNC, None),
        ("task_struct", abi.BTF_KIND_STRUCT, "no_such_module"),
    ]
    asked, read = btf_lookup.resolve(queries), btf_lookup.scan(queries)
    assert asked[:6] == read[:6]
    assert asked[6:] == read[6:] == [None, None]
    assert all(answer and answer[0] == 0 and answer[1] > 0 for answer in asked[:3])


def test_many_names_at_once() -> None:
    queries = [TASK] * 2500
    answers = btf_lookup.resolve(queries)
    assert len(answers) == 2500
    assert len(set(answers)) == 1


def test_reading_btf_replaces_a_refused_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = btf_lookup.resolve([TASK])

    def refuse(queries: object) -> list[int]:
        raise KernelError("refused", errno=1, call="BPF_PROG_LOAD")

    monkeypatch.setattr(btf_lookup, "_ask", refuse)
    assert btf_lookup.resolve([TASK]) == expected
    monkeypatch.setattr(btf_lookup, "BTF_DIR", "/no/such")
    with pytest.raises(KernelError, match="CONFIG_DEBUG_INFO_BTF"):
        btf_lookup.resolve([TASK])


def test_a_missing_name_fails_the_plan() -> None:
    the_plan = plan(lookup(("nonesuch", 12, None, False), ("x_gone", 4, "ovl", False),
                           ("weakling", 12, None, True)))  # fmt: skip
    with pytest.raises(SymbolNotFoundError) as caught:
        run(the_plan)
    assert caught.value.names == ("func nonesuch", "struct x_gone (module ovl)")
    assert "weakling" not in str(caught.value)
    assert os.uname().release in str(caught.value)


# --- patches ----------------------------------------------------------------------------------


def test_a_kfunc_is_called_and_a_weak_one_poisoned(prefix: str) -> None:
    """bpf_cpumask_create and _release in a syscall program; the missing one is never reached."""
    code = (
        call(-1) + insn(0x55, 0, 0, 2) + returns(1)  # r0 = bpf_cpumask_create(); NULL: return 1
        + mov_reg(1, 0) + call(-1)
        + returns(7)
    )  # fmt: skip
    names = (("bpf_cpumask_create", 12, None, True), ("bpf_cpumask_release", 12, None, True))
    the_plan = plan(
        lookup(*names),
        prog(0, f"{prefix}_k", code, 31, flags=abi.BPF_F_SLEEPABLE,
             patches=((0, "kfunc", 0), (5, "kfunc", 1))),
    )  # fmt: skip
    need("kfuncs of cpumasks")  # 6.3
    with run(the_plan) as obj:
        assert obj.programs[f"{prefix}_k"].test_run(ctx=bytes(8)).retval == 7
    missing = plan(
        lookup(("no_such_kfunc", 12, None, True)),
        prog(0, f"{prefix}_w", call(-1) + returns(0), patches=((0, "kfunc", 0),)),
    )
    with pytest.raises(VerifierError, match="weak kfunc"):
        run(missing)
    # Dead code may hold it: if r0 == 0 is always true, the call is never reached.
    dead = insn(0xB7, 0) + insn(0x15, 0, 0, 1) + call(-1) + returns(3)
    with run(plan(lookup(("no_such_kfunc", 12, None, True)),
                  prog(0, f"{prefix}_d", dead, patches=((2, "kfunc", 0),)))) as obj:  # fmt: skip
        assert obj.programs[f"{prefix}_d"].test_run(bytes(20)).retval == 3


def test_a_typed_ksym_and_a_weak_missing_one(prefix: str) -> None:
    """ldimm64 of a kernel variable's address; a missing weak one is 0."""
    code = ldimm64(6, 0) + ldimm64(7, 0) + mov_reg(1, 6) + insn(0xB7, 0, imm=0)
    code += insn(0x15, 6, 0, 1) + insn(0x07, 0, imm=1)  # found: r0 += 1
    code += insn(0x55, 7, 0, 1) + insn(0x07, 0, imm=2)  # second is 0: r0 += 2
    code += EXIT
    the_plan = plan(
        lookup(("bpf_prog_active", 14, None, True), ("no_such_variable", 14, None, True)),
        prog(0, f"{prefix}_v", code, patches=((0, "ksym", 0), (2, "ksym", 1))),
    )
    found = btf_lookup.resolve([("bpf_prog_active", 14, None)])[0]
    if " bpf_prog_active\n" not in Path("/proc/kallsyms").read_text():
        pytest.skip("this kernel's kallsyms has no variables (CONFIG_KALLSYMS_ALL)")
    with run(the_plan) as obj:
        result = obj.programs[f"{prefix}_v"].test_run(bytes(20)).retval
        assert result == (3 if found else 2)


def test_an_address_from_kallsyms(prefix: str) -> None:
    code = ldimm64(0, 0) + insn(0x77, 0, imm=32) + EXIT  # upper half of the address
    good = plan(prog(0, f"{prefix}_a", code, patches=((0, "addr", "bpf_prog_put"),)))
    with run(good) as obj:
        assert obj.programs[f"{prefix}_a"].test_run(bytes(20)).retval == 0xFFFFFFFF
    gone = plan(prog(0, f"{prefix}_a", code, patches=((0, "addr", "no_such_symbol"),)))
    with pytest.raises(SymbolNotFoundError, match="no symbol no_such_symbol"):
        run(gone)
    weak = plan(prog(0, f"{prefix}_a", code, patches=((0, "addr_weak", "no_such_symbol"),)))
    with run(weak) as obj:
        assert obj.programs[f"{prefix}_a"].test_run(bytes(20)).retval == 0


# --- alternatives and conditions --------------------------------------------------------------


def _choose(*alternatives: tuple[str, tuple[ops.Op, ...]], on: tuple[int, ...] = ()) -> ops.Choose:
    return ops.Choose(label="variant", alternatives=alternatives, on=on)


def test_the_next_alternative_is_tried(prefix: str) -> None:
    the_plan = plan(
        _choose(
            ("no kernel type", (lookup(("nonesuch", 12, None, False)),)),
            ("refused", (array(1, f"{prefix}_one"), prog(0, f"{prefix}_p", BAD))),
            ("good", (array(1, f"{prefix}_two"), prog(0, f"{prefix}_p", returns(5)))),
            ("never", (prog(0, f"{prefix}_p", returns(6)),)),
        )
    )
    with run(the_plan) as obj:
        assert obj.choices == {"variant": "good"}
        assert list(obj.maps) == [f"{prefix}_one", f"{prefix}_two"]  # both names, one slot
        assert obj.programs[f"{prefix}_p"].test_run(bytes(20)).retval == 5


def test_all_alternatives_fail(prefix: str) -> None:
    the_plan = plan(
        _choose(("a", (lookup(("nonesuch", 12, None, False)),)),
                ("b", (prog(0, f"{prefix}_p", BAD),)))
    )  # fmt: skip
    with pytest.raises(VerifierError) as caught:
        run(the_plan)
    assert caught.value.where["choice"] == "variant: b"
    assert "'a' failed before" in caught.value.__notes__[0]


def test_other_errors_end_the_choice(prefix: str) -> None:
    """A full table or missing privileges are no reason to load something weaker."""
    the_plan = plan(
        _choose(("a", (ops.MapCreate(dst=0, name=f"{prefix}_m", type=999, key_size=4,
                                     value_size=4, max_entries=1),)),
                ("b", (array(0, f"{prefix}_m"),)))
    )  # fmt: skip
    with pytest.raises(KernelError, match="EINVAL"):
        run(the_plan)
    the_plan.ops[0].on = (22,)  # type: ignore[attr-defined]
    with run(the_plan) as obj:
        assert obj.choices == {"variant": "b"}


def test_conditions(prefix: str) -> None:
    def when(condition: tuple[str, str | int], dst: int) -> ops.When:
        return ops.When(
            condition=condition, then=(prog(dst, f"{prefix}_t{dst}", returns(0)),),
            otherwise=(prog(dst, f"{prefix}_e{dst}", returns(0)),),
        )  # fmt: skip

    the_plan = plan(
        lookup(("task_struct", 4, None, False), ("nonesuch", 12, None, True)),
        when(("symbol", 0), 0),
        when(("symbol", 1), 1),
        when(("module", "vmlinux"), 2),
        when(("module", "no_such_module"), 3),
        when(("slot", 0), 4),
        when(("slot", 9), 5),
        programs={f"{prefix}_{i}": i for i in range(6)},
    )
    with run(the_plan) as obj:
        got = [program.info()["name"][len(prefix) + 1] for program in obj.programs.values()]
        assert "".join(got) == "tetete"
    with pytest.raises(PlanError, match="no condition"):
        run(plan(ops.When(condition=("moon", "full"), then=())))


# --- variables --------------------------------------------------------------------------------

U32 = ("int", 4, False)


def _variables(prefix: str, flags: int) -> ops.Plan:
    return plan(
        array(0, f"{prefix}.bss", 32, flags=flags),
        array(1, f"{prefix}.ro", 8, flags=flags | abi.BPF_F_RDONLY_PROG),
        ops.MapFill(map=1, entries=((bytes(4), struct.pack("=Q", 77)),)),
        ops.MapFreeze(map=1),
        variables={
            "armed": (f"{prefix}.bss", 4, 4, U32),
            "name": (f"{prefix}.bss", 8, 6, ("array", ("char", 1), 6, 1)),
            "odd": (f"{prefix}.bss", 17, 4, U32),
            "raw": (f"{prefix}.bss", 24, 8, None),
            "limit": (f"{prefix}.ro", 0, 8, ("int", 8, False)),
            "lost": ("elsewhere", 0, 4, U32),
        },
    )


@pytest.mark.parametrize("flags", [abi.BPF_F_MMAPABLE, 0], ids=["mmap", "map calls"])
def test_variables(flags: int, prefix: str) -> None:
    with run(_variables(prefix, flags)) as obj:
        obj.vars["armed"] = 1
        obj.vars["name"] = b"abc"
        obj.vars["odd"] = 0xDEADBEEF
        obj.vars["raw"] = 5
        assert obj.vars["armed"] == 1
        assert obj.vars["name"] == b"abc\0\0\0"
        assert obj.vars["odd"] == 0xDEADBEEF
        assert obj.vars["raw"] == struct.pack("=Q", 5)
        assert obj.vars["limit"] == 77
        whole = obj.maps[f"{prefix}.bss"][0]
        assert whole == (
            struct.pack("=II6s", 0, 1, b"abc") + bytes(3) + b"\xef\xbe\xad\xde" + bytes(3)
            + struct.pack("=Q", 5)
        )  # fmt: skip
        assert dict(obj.vars.items())["limit"] == 77
        assert "armed" in obj.vars
        assert len(obj.vars) == 6
        for name, value, sentence in (
            ("limit", 1, "read-only once it is loaded"),
            ("nothing", 1, "there is no variable 'nothing'"),
            ("armed", 1 << 32, "does not fit"),
            ("raw", b"abc", "3 bytes given where 8"),
            ("name", b"abcdefg", "7 bytes given where 6"),
            ("lost", 1, "not made or is closed"),
        ):
            with pytest.raises(UsageError, match=sentence):
                obj.vars[name] = value


def test_unmapping(prefix: str) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as file:
            return file.read().count("bpf-map")

    with run(_variables(prefix, abi.BPF_F_MMAPABLE)) as obj:
        obj.vars["armed"] = 1
        assert mapped() == 1
        obj.vars.unmap()
        assert mapped() == 0
        assert obj.vars["armed"] == 1
        assert obj.vars["limit"] == 77
        assert mapped() == 2
    assert mapped() == 0


# --- maps -------------------------------------------------------------------------------------


def test_types_without_btf_get_none(prefix: str) -> None:
    the_plan = plan(
        ops.BtfLoad(dst=0, data=small_btf()),
        array(1, f"{prefix}_a", 4, btf=0, key_type_id=1, value_type_id=1),
        ops.MapCreate(dst=2, name=f"{prefix}_q", type=abi.BPF_MAP_TYPE_QUEUE, key_size=0,
                      value_size=4, max_entries=4, btf=0, value_type_id=1),
        ops.MapCreate(dst=3, name=f"{prefix}_e", type=abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY,
                      key_size=4, value_size=4, max_entries=ops.NR_CPUS, btf=0, key_type_id=1,
                      value_type_id=1),
        # BTF that does not fit (a value of 8 bytes, a type of 4): made without.
        array(4, f"{prefix}_x", 8, btf=0, key_type_id=1, value_type_id=1),
    )  # fmt: skip
    with run(the_plan) as obj:
        ids = {name[-1]: m.info()["btf_value_type_id"] for name, m in obj.maps.items()}
        assert ids == {"a": 1, "q": 0, "e": 0, "x": 0}
        assert [note for note in obj.notes if "_x was made without BTF" in note]
        from pybpf.kernel.cpus import possible_cpus

        assert obj.maps[f"{prefix}_e"].max_entries == possible_cpus()


def test_broken_btf(prefix: str) -> None:
    data = small_btf()[:-5] + b"\xff\xff\xff\xff\xff"
    with pytest.raises(KernelError, match="BPF_BTF_LOAD failed") as caught:
        run(plan(ops.BtfLoad(dst=0, data=data)))
    assert "The kernel says:" in str(caught.value)
    with run(plan(ops.BtfLoad(dst=0, data=data, optional=True), array(1, f"{prefix}_m"))) as obj:
        assert "went on without BTF" in obj.notes[0]


def test_a_pinned_map_is_shared_and_not_filled_again(prefix: str, bpffs: Path) -> None:
    path = str(bpffs / "shared")
    the_plan = plan(
        array(0, f"{prefix}_s", 8, pin_path=path),
        ops.MapFill(map=0, entries=((bytes(4), b"initial!"),)),
    )
    with run(the_plan) as first:
        assert first.maps[f"{prefix}_s"][0] == b"initial!"
        first.maps[f"{prefix}_s"][0] = b"changed!"
        with run(the_plan) as second:
            assert second.maps[f"{prefix}_s"].id == first.maps[f"{prefix}_s"].id
            assert second.maps[f"{prefix}_s"][0] == b"changed!"
        other = plan(array(0, f"{prefix}_s", 16, entries=3, pin_path=path))
        with pytest.raises(PlanError, match="value_size 8, not 16, max_entries 1, not 3"):
            run(other)
    assert os.path.exists(path)
    os.unlink(path)


def test_a_given_map_is_used(prefix: str) -> None:
    the_plan = plan(array(0, f"{prefix}_g"), ops.MapFill(map=0, entries=((bytes(4), bytes(8)),)))
    with run(the_plan) as first:
        m = first.maps[f"{prefix}_g"]
        m[0] = 5
        with run(the_plan, maps={f"{prefix}_g": m.fileno()}) as second:
            assert second.maps[f"{prefix}_g"].id == m.id
            assert second.maps[f"{prefix}_g"][0] == struct.pack("=Q", 5)
        assert m[0] == struct.pack("=Q", 5)
        with pytest.raises(PlanError, match="no map 'other'"):
            run(the_plan, maps={"other": m.fileno()})
        program = plan(prog(0, f"{prefix}_p", returns(0)))
        with run(program) as loaded, pytest.raises(UsageError, match="not a BPF map"):
            run(the_plan, maps={f"{prefix}_g": loaded.programs[f"{prefix}_p"].fileno()})


def test_maps_in_maps_and_program_arrays(prefix: str) -> None:
    the_plan = plan(
        ops.MapCreate(dst=0, name=f"{prefix}_in", type=HASH, key_size=4, value_size=4,
                      max_entries=4),
        ops.MapCreate(dst=1, name=f"{prefix}_out", type=abi.BPF_MAP_TYPE_HASH_OF_MAPS, key_size=4,
                      value_size=4, max_entries=4, inner=0),
        ops.MapFill(map=1, entries=((b"\5\0\0\0", 0),)),
        ops.MapCreate(dst=2, name=f"{prefix}_jmp", type=abi.BPF_MAP_TYPE_PROG_ARRAY, key_size=4,
                      value_size=4, max_entries=2),
        prog(3, f"{prefix}_p", returns(42)),
        ops.MapFill(map=2, entries=((bytes(4), 3),)),
        # r2 = map, r3 = 0: bpf_tail_call
        prog(4, f"{prefix}_c", ldimm64(2, abi.BPF_PSEUDO_MAP_IDX) + insn(0xB7, 3) + call(12)
             + returns(1), fd_array=(2,)),
    )  # fmt: skip
    with run(the_plan) as obj:
        assert obj.maps[f"{prefix}_out"][5] == obj.maps[f"{prefix}_in"].id
        assert obj.programs[f"{prefix}_c"].test_run(bytes(20)).retval == 42


# --- the object -------------------------------------------------------------------------------


def test_closing_twice_and_use_after(prefix: str) -> None:
    obj = run(plan(array(0, f"{prefix}_m")))
    m = obj.maps[f"{prefix}_m"]
    obj.close()
    obj.close()
    assert obj.closed
    assert m.closed
    for use in (lambda: m[0], obj.attach, obj.detach, obj.inherit, obj.detach_fds):
        if use == obj.inherit:
            continue
        with pytest.raises(UsageError, match="closed"):
            use()


def test_a_dropped_object_closes_at_once(prefix: str) -> None:
    obj = run(plan(array(0, f"{prefix}_m")))
    ident = obj.maps[f"{prefix}_m"].id
    del obj

    def gone() -> bool:
        try:
            Map.from_id(ident).close()
        except KernelError as error:
            return error.errno == 2
        return False

    assert settle(gone)


def test_empty_slots_are_named(prefix: str) -> None:
    with pytest.raises(PlanError, match="map slot 3 is empty") as caught:
        run(plan(ops.MapFreeze(map=3)))
    assert caught.value.where["object"] == "test"
    with pytest.raises(PlanError, match="slot 0 does not exist or is taken"):
        run(plan(array(0, f"{prefix}_a"), array(0, f"{prefix}_b")))


def test_tracing_the_run(prefix: str) -> None:
    seen: list[tuple[str, int]] = []
    the_plan = plan(array(0, f"{prefix}_m"), prog(1, f"{prefix}_p", returns(0)))
    with run(the_plan, trace=lambda op, ns: seen.append((type(op).__name__, ns))):
        assert [name for name, _ in seen] == ["MapCreate", "ProgLoad"]
        assert all(0 < ns < 10**9 for _, ns in seen)


def test_a_tracing_program_loads_through_a_compiled_id(prefix: str) -> None:
    answer = btf_lookup.resolve([("btf_trace_sched_process_exit", 8, None)])[0]
    assert answer is not None
    the_plan = plan(prog(0, f"{prefix}_t", returns(0), TRACING, attach_btf_id=answer[1],
                         expected_attach_type=abi.BPF_TRACE_RAW_TP))  # fmt: skip
    with run(the_plan) as obj:
        assert obj.programs[f"{prefix}_t"].info()["attach_btf_id"] == answer[1]


# --- imports ----------------------------------------------------------------------------------

FORBIDDEN = {
    "elftools", "construct", "enum", "re", "dataclasses", "typing", "contextlib", "collections",
    "inspect", "hashlib", "subprocess", "argparse", "json", "functools", "importlib.metadata",
}  # fmt: skip
RUNNER = """
import sys
sys.path.insert(0, {root!r})
from pybpf.plan.frozen import from_bytes
from pybpf.plan.run import run
from pybpf.kernel.ringbuf import RingBuffer
with open(sys.argv[1], "rb") as file:
    plan = from_bytes(file.read())
with run(plan) as obj:
    obj.attach()
    obj.vars["armed"] = 1
    assert obj.vars["armed"] == 1
    ring = RingBuffer(obj.maps["ring"])
    ring.read()
    print(*obj.links["tp"].info().items(), file=sys.stderr)
    ring.close()
print(*sorted(sys.modules))
"""


def test_what_a_process_that_runs_a_plan_imports(prefix: str, tmp_path: Path) -> None:
    the_plan = plan(
        lookup(("btf_trace_sched_process_exit", 8, None, False)),
        ops.BtfLoad(dst=0, data=small_btf()),
        array(1, f"{prefix}.bss", 4, flags=abi.BPF_F_MMAPABLE, btf=0, key_type_id=1,
              value_type_id=1),
        ops.MapCreate(dst=2, name="ring", type=abi.BPF_MAP_TYPE_RINGBUF, key_size=0, value_size=0,
                      max_entries=4096),
        _choose(("refused", (prog(3, "tp", BAD),)),
                ("good", (prog(3, "tp", returns(0), TRACING, attach_symbol=0,
                               expected_attach_type=abi.BPF_TRACE_RAW_TP),))),
        attach=(ops.LinkCreate(dst=4, name="tp", prog=3, how="link",
                               attach_type=abi.BPF_TRACE_RAW_TP),),
        variables={"armed": (f"{prefix}.bss", 0, 4, U32)},
    )  # fmt: skip
    bundle = tmp_path / "plan"
    bundle.write_bytes(frozen.to_bytes(the_plan))
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUNNER.format(root=root), str(bundle)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert "pybpf.plan.run" in modules
    assert modules & FORBIDDEN == set()
    assert not {name for name in modules if name.startswith(("elftools", "construct"))}
