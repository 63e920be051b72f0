# SPDX-License-Identifier: BSD-2-Clause
"""A refused program is told which field of which type it looked for, and what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

import pybpf
from pybpf.asm import Instruction, encode
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.errors import VerifierError
from pybpf.reloc.core_explain import explain_poisoned, explain_refusal
from pybpf.spec import CoreRelo, FunctionSpec, ObjectSpec, ProgramSpec

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="no kernel BTF"),
]


def spec() -> ObjectSpec:
    """A socket filter whose second instruction needs task_struct.pidd."""
    w = BtfWriter()
    i32 = w.add_int("int", 4, signed=True)
    task = w.add_struct("task_struct", 8, [("pid", i32, 0), ("pidd", i32, 32)])
    func = w.add_func("f", w.add_proto(i32), 1)
    access = w.string("0:1")
    code = encode(
        [
            Instruction(0, 0xB7, 1, 0, 0, 0),
            Instruction(1, 0xB7, 0, 0, 0, 4),
            Instruction(2, 0x95, 0, 0, 0, 0),
        ]
    )
    function = FunctionSpec(
        "f", "socket", 0, code, type_id=func, core=(CoreRelo(1, task, "0:1", access, 0),)
    )
    program = ProgramSpec("f", "socket", 0, 1)
    btf = Btf.parse(w.build(), name="made up")
    return ObjectSpec("made_up", "little", "GPL", 0, {}, (function,), {"f": program}, {}, {}, btf)


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_the_field_is_named(relocate: str) -> None:
    with pytest.raises(VerifierError) as caught:
        pybpf.load(spec(), relocate=relocate)
    error = explain_refusal(caught.value, spec())
    assert "vmlinux's struct task_struct has no member pidd (it has pid" in str(error)
    assert str(explain_refusal(error, spec())).count("pidd (it") == 1


def test_where_there_is_no_relocation() -> None:
    assert explain_poisoned(spec(), "f", 0) is None
    assert explain_poisoned(spec(), "no such", 1) is None
