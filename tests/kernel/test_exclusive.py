# SPDX-License-Identifier: BSD-2-Clause
"""Maps that one program alone may use (6.18)."""

from __future__ import annotations

import struct

import pytest

import pybpf
from pybpf.asm import Instruction, encode
from pybpf.errors import CompileError, VerifierError
from pybpf.plan import ops
from pybpf.plan.explain import to_text
from pybpf.plan.frozen import from_bytes, to_bytes
from pybpf.spec import FunctionSpec, MapSpec, ObjectSpec, ProgramSpec, Ref
from pybpf.sys import abi
from tests.kernel.lacks import need

pytestmark = pytest.mark.kernel


def spec(*, stranger: bool) -> ObjectSpec:
    """Program "owner" reads the first word of a map that is its alone; "stranger" tries to."""

    def code(constant: int) -> bytes:
        return encode(
            [Instruction(0, 0x18, 1, 2, 0, 0, 0), Instruction(2, 0x61, 0, 1, 0, 0),
             Instruction(3, 0x07, 0, 0, 0, constant), Instruction(4, 0x95, 0, 0, 0, 0)]
        )  # fmt: skip

    data = MapSpec(
        ".data", abi.BPF_MAP_TYPE_ARRAY, 4, 8, 1, data=struct.pack("=Q", 40), exclusive="owner"
    )
    functions = tuple(
        FunctionSpec(name, "socket", 0, code(number), (Ref(0, "data", ".data"),))
        for name, number in (("owner", 2), ("stranger", 3))
    )
    programs = {
        f.name: ProgramSpec(f.name, "socket", i, 1, autoload=f.name == "owner" or stranger)
        for i, f in enumerate(functions)
    }
    return ObjectSpec("exclusive", "little", "GPL", 0, {".data": data}, functions, programs, {}, {})


@pytest.mark.parametrize("relocate", ["python", "kernel"])
def test_the_owner_alone_loads(relocate: str, prefix: str) -> None:
    need("exclusive maps")
    with pybpf.load(spec(stranger=False), relocate=relocate) as obj:
        assert obj.programs["owner"].test_run(data=bytes(64)).retval == 42
    with pytest.raises(VerifierError, match="excl_prog_hash") as caught:
        pybpf.load(spec(stranger=True), relocate=relocate)
    assert caught.value.where["program"] == "stranger"


def test_the_plan_says_so() -> None:
    plan = pybpf.compile(spec(stranger=False), relocate="python")
    (create,) = [op for op in plan.ops if isinstance(op, ops.MapCreate)]
    assert isinstance(create, ops.ExclusiveMapCreate)
    assert f"for the program alone whose hash is {create.program_hash.hex()}" in to_text(plan)
    assert from_bytes(to_bytes(plan)) == plan
    short = ops.ExclusiveMapCreate(
        **{n: getattr(create, n) for n in ops.MapCreate.FIELDS}, program_hash=b"short"
    )
    plan.ops = tuple(short if op is create else op for op in plan.ops)
    with pytest.raises(pybpf.FormatError, match="hash of 5 bytes"):
        from_bytes(to_bytes(plan))


def test_an_owner_that_is_not_loaded() -> None:
    with pytest.raises(CompileError, match="'owner' alone, which is not loaded"):
        pybpf.compile(spec(stranger=True).with_program("owner", autoload=False))
