# SPDX-License-Identifier: BSD-2-Clause
"""Minimal BTF: everything that was decided is decided the same from it, and it is small."""

from __future__ import annotations

import pytest

from pybpf.asm import encode
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.errors import UsageError
from pybpf.reloc import core_spec as cs
from pybpf.reloc.core import CoreRelocator, CoreTarget, Outcome
from pybpf.reloc.core_minimal import minimal
from pybpf.spec import CoreRelo
from tests.unit.core_util import LDX_W, MOV_K, insn
from tests.unit.test_core_values import kernel, program

RELOS = [
    ("s", "0:0", cs.FIELD_BYTE_OFFSET, 0), ("s", "0:2:0", cs.FIELD_BYTE_OFFSET, 8),
    ("s", "0:2:1", cs.FIELD_EXISTS, 1), ("s", "0:3:2", cs.FIELD_BYTE_OFFSET, 24),
    ("s", "0:4:1", cs.FIELD_BYTE_OFFSET, 36), ("s", "0:5", cs.FIELD_BYTE_OFFSET, 40),
    ("s", "0:6:3", cs.FIELD_BYTE_OFFSET, 60), ("s", "0:3", cs.FIELD_BYTE_SIZE, 16),
    ("s", "0:1", cs.FIELD_SIGNED, 1), ("bits", "0:0", cs.FIELD_LSHIFT_U64, 0),
    ("bits", "0:1", cs.FIELD_RSHIFT_U64, 53), ("s", "0", cs.TYPE_SIZE, 48),
    ("s", "0", cs.TYPE_EXISTS, 1), ("inner", "0", cs.TYPE_MATCHES, 1),
    ("color", "1", cs.ENUMVAL_VALUE, 2), ("color", "0", cs.ENUMVAL_EXISTS, 1),
]  # fmt: skip


def decide(local: Btf, ids: dict[str, int], target: Btf) -> list[Outcome]:
    relocator = CoreRelocator(local, CoreTarget(target))
    outcomes = []
    for name, access, kind, value in RELOS:
        code = bytearray(encode([insn(MOV_K, value)], local.byteorder))
        outcomes += relocator.relocate(code, [CoreRelo(0, ids[name], access, 0, kind)])
    return outcomes


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_the_same_decisions_from_less(byteorder: str) -> None:
    writer, ids = program(byteorder)
    local, whole = writer.btf(), kernel(byteorder).btf()
    first = decide(local, ids, whole)
    small = Btf.parse(minimal(whole, first), name="small")
    assert small.byteorder == byteorder
    again = decide(local, ids, small)
    assert [o.after for o in again] == [o.after for o in first]
    assert small.find("unrelated") == []
    assert len(small.raw()) < len(whole.raw())
    # nothing more is in it when it is made once more
    assert minimal(small, again) == small.raw()


def test_members_that_nothing_asked_for_go() -> None:
    writer, ids = program()
    local, whole = writer.btf(), kernel().btf()
    relocator = CoreRelocator(local, CoreTarget(whole))
    (outcome,) = relocator.relocate(
        bytearray(encode([insn(LDX_W, 36)])),
        [CoreRelo(0, ids["s"], "0:4:1", 0, cs.FIELD_BYTE_OFFSET)],
    )
    small = Btf.parse(minimal(whole, [outcome]))
    (s,) = small.find("s")
    (inner,) = small.find("inner")
    assert small.type(s).member_names == ("in",)
    assert small.type(inner).member_names == ("y",)
    assert small.type(s).size == 120


def test_modules_are_refused() -> None:
    base = kernel().btf(name="vmlinux")
    w = BtfWriter(base=base)
    w.add_struct("mod", 4, [("f", 1, 0)])
    module = w.btf(base=base, name="mod")
    with pytest.raises(UsageError, match="split"):
        minimal(module, [])
    local = BtfWriter()
    u32 = local.add_int("unsigned int", 4)
    mod = local.add_struct("mod", 4, [("f", u32, 0)])
    outcomes = CoreRelocator(local.btf(), CoreTarget(base, {"mod": module})).relocate(
        bytearray(encode([insn(MOV_K, 0)])), [CoreRelo(0, mod, "0:0", 0, cs.FIELD_BYTE_OFFSET)]
    )
    with pytest.raises(UsageError, match="found in mod"):
        minimal(base, outcomes)
