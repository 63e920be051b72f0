# SPDX-License-Identifier: BSD-2-Clause
"""Refusals of the running kernel, told in terms of the object."""

from __future__ import annotations

from pathlib import Path

import pytest

import pybpf
from pybpf.asm import Instruction, encode
from pybpf.btf.consts import KIND_FUNC
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.compiler.refusal import explain
from pybpf.compiler.target import Target
from pybpf.errors import PybpfError, SymbolNotFoundError, VerifierError
from pybpf.reloc.near import nearest_symbols
from pybpf.spec import CoreRelo, ExternSpec, FunctionSpec, MapSpec, ObjectSpec, ProgramSpec, Ref

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="no kernel BTF"),
]

EXIT = Instruction(0, 0x95, 0, 0, 0, 0)


def mov(imm: int) -> Instruction:
    return Instruction(0, 0xB7, 0, 0, 0, imm)


def spec(
    code: list[Instruction],
    *,
    kfuncs: tuple[tuple[str, bool], ...] = (),
    ksyms: tuple[str, ...] = (),
    refs: tuple[Ref, ...] = (),
    maps: tuple[MapSpec, ...] = (),
    field: str | None = None,
    section: str = "socket",
    kind: int = 1,
    attach: tuple[int, str] | None = None,
) -> ObjectSpec:
    """One program "f" with a FUNC in BTF and kfuncs of no parameters."""
    w = BtfWriter()
    i32 = w.add_int("int", 4, signed=True)
    proto = w.add_proto(i32)
    func = w.add_func("f", proto, 1)
    externs = {
        name: ExternSpec(name, "kfunc", w.add_func(name, proto, 2), weak) for name, weak in kfuncs
    }
    # Type 0 is void: symbols without a type.
    externs |= {name: ExternSpec(name, "ksym", 0, False) for name in ksyms}
    core: tuple[CoreRelo, ...] = ()
    if field is not None:
        task = w.add_struct("task_struct", 8, [("pid", i32, 0), (field, i32, 32)])
        core = (CoreRelo(0, task, "0:1", w.string("0:1"), 0),)
    function = FunctionSpec("f", section, 0, encode(code), refs, func, core=core)
    program = ProgramSpec("f", section, 0, kind, *(attach or ()))
    return ObjectSpec(
        "made_up", "little", "GPL", 0, {m.name: m for m in maps}, (function,), {"f": program}, {},
        externs, Btf.parse(w.build(), name="made up"),
    )  # fmt: skip


def refusal(made: ObjectSpec, relocate: str = "kernel") -> PybpfError:
    with pytest.raises(PybpfError) as caught:
        pybpf.load(made, relocate=relocate)
    error = caught.value
    before = str(error)
    assert str(explain(error, made)) == before, "told twice"
    return error


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_load_names_the_field(relocate: str) -> None:
    error = refusal(spec([mov(4), EXIT], field="pidd"), relocate)
    assert isinstance(error, VerifierError)
    assert "task_struct has no member pidd (it has pid" in str(error)


def test_verify_names_the_field() -> None:
    from pybpf.cli.verify import verify

    found = verify(spec([mov(4), EXIT], field="pidd"), Target.of_running())
    assert "has no member pidd (it has pid" in found["programs"][0]["error"]


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_a_weak_kfunc_is_named(relocate: str) -> None:
    call = Instruction(0, 0x85, 0, 2, 0, -1)
    refs = (Ref(0, "extern", "bpf_no_such"),)
    made = spec([call, EXIT], kfuncs=(("bpf_no_such", True),), refs=refs)
    error = refusal(made, relocate)
    assert isinstance(error, VerifierError)
    assert "The weak kfunc is 'bpf_no_such'." in str(error)


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_a_missing_kfunc_has_neighbours(relocate: str) -> None:
    name = "bpf_rcu_read_lockk"
    call = Instruction(0, 0x85, 0, 2, 0, -1)
    error = refusal(
        spec([call, EXIT], kfuncs=((name, False),), refs=(Ref(0, "extern", name),)), relocate
    )
    assert name in str(error)
    assert "id you mean" in str(error)
    assert "bpf_rcu_read_lock" in str(error).replace(name, "")


def test_a_missing_target_has_neighbours() -> None:
    made = spec([mov(0), EXIT], section="fentry/do_unlinkatt", kind=26, attach=(24, "do_unlinkatt"))
    for relocate in ("kernel", "python"):
        error = refusal(made, relocate)
        assert "do_unlinkat" in str(error).replace("do_unlinkatt", "")
        assert error.where["program"] == "f"
        assert error.where["section"] == "fentry/do_unlinkatt"
        assert next(iter(error.where)) == "object"
    assert isinstance(refusal(made), SymbolNotFoundError)


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_a_missing_address_has_neighbours(relocate: str) -> None:
    """A symbol without a type, looked for in /proc/kallsyms."""
    wide = Instruction(0, 0x18, 0, 0, 0, 0, 0)
    name = "do_unlinkatt"
    made = spec([wide, EXIT], ksyms=(name,), refs=(Ref(0, "extern", name),))
    error = refusal(made, relocate)
    assert "did you mean do_unlinkat" in str(error).lower()
    assert error.where["program"] == "f"


def test_several_that_are_missing_name_their_programs() -> None:
    call = Instruction(0, 0x85, 0, 2, 0, -1)
    names = ("bpf_rcu_read_lockk", "bpf_rcu_read_unlockk")
    made = spec(
        [call, call._replace(slot=1), EXIT], kfuncs=tuple((n, False) for n in names),
        refs=tuple(Ref(i, "extern", n) for i, n in enumerate(names)),
    )  # fmt: skip
    error = refusal(made)
    for name in names:
        assert f"{name} (program f)" in str(error)
    assert " for bpf_rcu_read_unlockk?" in str(error)


def test_a_map_left_out_is_named() -> None:
    wide = Instruction(0, 0x18, 1, 0, 0, 0)
    table = MapSpec("table", 1, 4, 4, 1, autocreate=False)
    error = refusal(spec([wide, mov(0), EXIT], maps=(table,), refs=(Ref(0, "map", "table"),)))
    assert "a use of map 'table', which is not created" in str(error)


def test_an_unknown_helper() -> None:
    error = refusal(spec([Instruction(0, 0x85, 0, 0, 0, 9999), EXIT]))
    assert "no helper 9999" in str(error)


def test_an_unknown_section() -> None:
    error = refusal(spec([mov(0), EXIT], section="kprob/f", kind=0))
    assert "did you mean kprobe" in str(error)


def test_nearest_symbols_are_of_the_kind() -> None:
    assert nearest_symbols("do_unlinkatt", KIND_FUNC)[0] == "do_unlinkat"
    assert nearest_symbols("zzqqxxyyww", KIND_FUNC) == []
