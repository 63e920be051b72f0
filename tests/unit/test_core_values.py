# SPDX-License-Identifier: BSD-2-Clause
"""The value of each of the thirteen relocation kinds, against hand-worked layouts."""

from __future__ import annotations

import pytest

from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.errors import FormatError, RelocationError
from pybpf.reloc import core_spec as cs
from pybpf.reloc.core import POISON, CoreRelocator, CoreTarget
from pybpf.spec import CoreRelo
from tests.unit.core_util import (
    ADD_K,
    LDIMM64,
    LDX_B,
    LDX_DW,
    LDX_H,
    LDX_W,
    MOV32_K,
    MOV_K,
    MOV_X,
    ST_W,
    STX_W,
    relocate,
)


def program(byteorder: str = "little") -> tuple[BtfWriter, dict[str, int]]:
    """The types as the program knows them."""
    w = BtfWriter(byteorder)
    u32 = w.add_int("unsigned int", 4)
    i32 = w.add_int("int", 4, signed=True)
    u64 = w.add_int("unsigned long", 8)
    arr = w.add_array(u32, u32, 4)
    flex = w.add_array(u32, u32, 0)
    inner = w.add_struct("inner", 8, [("x", u32, 0), ("y", i32, 32)])
    s = w.add_struct(
        "s",
        48,
        [
            ("a", u32, 0),
            ("b", i32, 32),
            ("", w.add_struct("", 8, [("c", u32, 0), ("d", u32, 32)], union=False), 64),
            ("arr", arr, 128),
            ("in", w.add_typedef("inner_t", w.add_const(inner)), 256),
            ("p", w.add_ptr(inner), 320),
            ("flex", flex, 384),
        ],
    )
    bits = w.add_struct("bits", 8, [("lo", u32, 0, 5), ("hi", i32, 5, 11), ("far", u64, 32, 20)])
    color = w.add_enum("color", [("RED", 1), ("GREEN", 2)])
    big = w.add_enum64("big", [("HUGE", 1 << 40)])
    return w, {"s": s, "bits": bits, "color": color, "big": big, "inner": inner, "u32": u32}


def kernel(byteorder: str = "little") -> BtfWriter:
    """The same types, moved about."""
    w = BtfWriter(byteorder)
    u32 = w.add_int("unsigned int", 4)
    i32 = w.add_int("int", 4, signed=True)
    u64 = w.add_int("unsigned long", 8)
    w.add_struct("unrelated", 4, [("a", u32, 0)])
    arr = w.add_array(u32, u32, 8)
    flex = w.add_array(u32, u32, 0)
    inner = w.add_struct("inner", 16, [("pad", u64, 0), ("x", u32, 64), ("y", i32, 96)])
    deep = w.add_struct(
        "", 16, [("", w.add_struct("", 8, [("c", u32, 0), ("e", u32, 32)], union=True), 64)]
    )
    w.add_struct(
        "s",
        120,
        [
            ("b", i32, 0),
            ("a", u64, 64),
            ("", deep, 128),
            ("arr", arr, 256),
            ("in", inner, 512),
            ("p", w.add_ptr(0), 640),
            ("flex", flex, 704),
        ],
    )
    w.add_struct("bits", 16, [("pad", u64, 0), ("hi", u32, 64, 7), ("lo", u32, 71, 6),
                              ("far", u64, 80, 20)], kflag=True)
    w.add_enum64("color", [("GREEN", 7), ("RED", -3)], signed=True)
    w.add_enum64("big", [("OTHER", 1), ("HUGE", 1 << 41)])
    return w


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize(
    ("name", "access", "kind", "old", "new"),
    [
        ("s", "0:0", cs.FIELD_BYTE_OFFSET, 0, 8),
        ("s", "0:1", cs.FIELD_BYTE_OFFSET, 4, 0),
        ("s", "0:2:0", cs.FIELD_BYTE_OFFSET, 8, 24),  # through two anonymous members
        ("s", "0:3:2", cs.FIELD_BYTE_OFFSET, 24, 40),
        ("s", "0:4:1", cs.FIELD_BYTE_OFFSET, 36, 76),  # through typedef and const
        ("s", "0:5", cs.FIELD_BYTE_OFFSET, 40, 80),
        ("s", "0:6:3", cs.FIELD_BYTE_OFFSET, 60, 100),  # a flexible array has no bound
        ("s", "1:0", cs.FIELD_BYTE_OFFSET, 48, 128),  # pointer arithmetic on the root
        ("s", "0:0", cs.FIELD_BYTE_SIZE, 4, 8),
        ("s", "0:3", cs.FIELD_BYTE_SIZE, 16, 32),
        ("s", "0:3:1", cs.FIELD_BYTE_SIZE, 4, 4),
        ("s", "0:0", cs.FIELD_EXISTS, 1, 1),
        ("s", "0:2:1", cs.FIELD_EXISTS, 1, 0),
        ("s", "0:1", cs.FIELD_SIGNED, 1, 1),
        ("s", "0:0", cs.FIELD_SIGNED, 0, 0),
        ("s", "0:0", cs.FIELD_RSHIFT_U64, 32, 0),
        ("bits", "0:1", cs.FIELD_SIGNED, 1, 0),
        ("bits", "0:0", cs.FIELD_RSHIFT_U64, 59, 58),
        ("bits", "0:1", cs.FIELD_RSHIFT_U64, 53, 57),
        ("s", "0", cs.TYPE_EXISTS, 1, 1),
        ("s", "0", cs.TYPE_SIZE, 48, 120),
        ("color", "0", cs.ENUMVAL_EXISTS, 1, 1),
        ("color", "1", cs.ENUMVAL_VALUE, 2, 7),
    ],
)
def test_values(byteorder: str, name: str, access: str, kind: int, old: int, new: int) -> None:
    local, ids = program(byteorder)
    target = kernel(byteorder)
    done, outcome = relocate(local, target, ids[name], access, kind, value=old)
    assert (outcome.old, outcome.new, outcome.poisoned) == (old, new, None)
    assert done.imm == new
    assert outcome.kind_name == cs.RELO_NAMES[kind]
    assert "insn 0" in outcome.text()


@pytest.mark.parametrize(
    ("byteorder", "access", "offset", "size", "lshift"),
    [
        # lo: bits 71..76 of the kernel's struct, in the u32 at byte 8
        ("little", "0:0", 8, 4, 64 - (71 + 6 - 64)),
        ("big", "0:0", 8, 4, (8 - 4) * 8 + (71 - 64)),
        # far: bits 80..99, in the u64 at byte 8
        ("little", "0:2", 8, 8, 64 - (80 + 20 - 64)),
        ("big", "0:2", 8, 8, 80 - 64),
    ],
)
def test_bitfields(byteorder: str, access: str, offset: int, size: int, lshift: int) -> None:
    local, ids = program(byteorder)
    target = kernel(byteorder)
    # What the compiler wrote is not checked for bit-fields: it may choose another storage unit.
    for kind, new in (
        (cs.FIELD_BYTE_OFFSET, offset),
        (cs.FIELD_BYTE_SIZE, size),
        (cs.FIELD_LSHIFT_U64, lshift),
    ):
        done, _ = relocate(local, target, ids["bits"], access, kind, value=4711)
        assert done.imm == new


def test_a_bitfield_over_a_boundary_takes_a_wider_load() -> None:
    local, target = BtfWriter(), BtfWriter()
    for w, at in ((local, 0), (target, 12)):
        u16 = w.add_int("u16", 2)
        w.add_struct("s", 8, [("f", u16, at, 10)])
    done, _ = relocate(local, target, 2, "0:0", cs.FIELD_BYTE_SIZE, value=2)
    assert done.imm == 4
    wide = BtfWriter()
    u64 = wide.add_int("u64", 8)
    wide.add_struct("s", 16, [("f", u64, 60, 10)])
    with pytest.raises(RelocationError, match="one 64-bit load"):
        relocate(local, wide, 2, "0:0", cs.FIELD_BYTE_SIZE, value=2)


def test_type_ids() -> None:
    local, ids = program()
    target = kernel()
    theirs = target.btf()
    done, outcome = relocate(local, theirs, ids["s"], "0", cs.TYPE_ID_TARGET, value=1,
                             opcode=LDIMM64)
    assert done.imm64 == theirs.find("s")[0]
    assert outcome.target is not None
    # Linking changes ids: whatever stands there, the local id replaces it.
    done, outcome = relocate(local, theirs, ids["s"], "0", cs.TYPE_ID_LOCAL, value=99,
                             opcode=LDIMM64)
    assert done.imm64 == ids["s"]
    assert outcome.candidates == ()
    # also of a type without a name
    w = BtfWriter()
    ptr = w.add_ptr(0)
    assert relocate(w, theirs, ptr, "0", cs.TYPE_ID_LOCAL)[0].imm == ptr


@pytest.mark.parametrize("kind", [cs.TYPE_EXISTS, cs.TYPE_SIZE, cs.TYPE_ID_TARGET,
                                  cs.TYPE_MATCHES, cs.FIELD_EXISTS, cs.ENUMVAL_EXISTS])
def test_what_is_not_there_gives_zero(kind: int) -> None:
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    s = w.add_struct("gone", 4, [("a", u32, 0)])
    e = w.add_enum("gone_too", [("V", 0)])
    type_id = e if kind == cs.ENUMVAL_EXISTS else s
    access = "0:0" if kind == cs.FIELD_EXISTS else "0"
    value = {cs.TYPE_SIZE: 4, cs.TYPE_ID_TARGET: 5}.get(kind, 1)
    done, outcome = relocate(w, kernel(), type_id, access, kind, value=value)
    assert (done.imm, done.opcode) == (0, MOV_K)
    assert outcome.target is None
    assert outcome.poisoned is None
    assert "the kernel has no" in outcome.text()


@pytest.mark.parametrize("opcode", [MOV_K, LDX_W, LDIMM64])
def test_what_is_needed_and_not_there_is_poisoned(opcode: int) -> None:
    local, ids = program()
    value = 12
    done, outcome = relocate(local, kernel(), ids["s"], "0:2:1", cs.FIELD_BYTE_OFFSET,
                             opcode=opcode, value=value)
    assert (done.opcode, done.dst, done.src, done.off, done.imm) == (0x85, 0, 0, 0, POISON)
    if opcode == LDIMM64:
        assert outcome.after[8:] == outcome.after[:8]
    assert outcome.poisoned is not None
    assert "vmlinux's struct s has no member d" in outcome.poisoned


def test_enum_values_are_64_bits_wide_and_signed() -> None:
    local, ids = program()
    done, outcome = relocate(local, kernel(), ids["big"], "0", cs.ENUMVAL_VALUE,
                             opcode=LDIMM64, value=1 << 40)
    assert done.imm64 == 1 << 41
    done, outcome = relocate(local, kernel(), ids["color"], "0", cs.ENUMVAL_VALUE,
                             opcode=LDIMM64, value=1)
    assert done.imm64 == (1 << 64) - 3
    assert outcome.new == (1 << 64) - 3
    assert "1 -> -3; vmlinux: [" in outcome.text()
    # a negative 32-bit value fills all 64 bits
    w = BtfWriter()
    w.add_enum("e", [("MINUS", -2)])
    done, _ = relocate(w, w, 1, "0", cs.ENUMVAL_VALUE, opcode=LDIMM64, value=(1 << 64) - 2)
    assert done.imm64 == (1 << 64) - 2
    done, _ = relocate(w, w, 1, "0", cs.ENUMVAL_VALUE, opcode=MOV_K, value=-2 & 0xFFFFFFFF)
    assert done.imm == -2


@pytest.mark.parametrize("opcode", [MOV_K, MOV32_K, ADD_K, STX_W, ST_W])
def test_every_instruction_that_can_hold_an_offset(opcode: int) -> None:
    local, ids = program()
    done, _ = relocate(local, kernel(), ids["s"], "0:4:1", cs.FIELD_BYTE_OFFSET, opcode=opcode,
                       value=36)
    assert (done.off if opcode & 7 in (2, 3) else done.imm) == 76
    assert done.opcode == opcode


@pytest.mark.parametrize("opcode", [MOV_X, 0x85, 0x05, 0x20])
def test_other_instructions_are_refused(opcode: int) -> None:
    local, ids = program()
    with pytest.raises(RelocationError):
        relocate(local, kernel(), ids["s"], "0:0", cs.FIELD_BYTE_OFFSET, opcode=opcode)


def one_field(name: str, size: int, *, signed: bool = False, at: int = 0) -> BtfWriter:
    """struct s { <at bytes>; int<size> f; }"""
    w = BtfWriter()
    t = w.add_int(name, size, signed=signed)
    w.add_struct("s", at + size, [("f", t, at * 8)])
    return w


@pytest.mark.parametrize(
    ("local_size", "target_size", "before", "after"),
    [(4, 8, LDX_W, LDX_DW), (8, 4, LDX_DW, LDX_W), (4, 2, LDX_W, LDX_H), (8, 1, LDX_DW, LDX_B),
     (4, 8, STX_W, 0x7B), (4, 1, ST_W, 0x72)],
)
def test_unsigned_loads_and_stores_change_their_size(
    local_size: int, target_size: int, before: int, after: int
) -> None:
    done, _ = relocate(one_field("u", local_size), one_field("v", target_size, at=16), 2, "0:0",
                       cs.FIELD_BYTE_OFFSET, opcode=before)
    assert (done.opcode, done.off) == (after, 16)


def test_signed_loads_of_another_size_are_poisoned() -> None:
    done, outcome = relocate(one_field("i", 4, signed=True), one_field("l", 8, signed=True),
                             2, "0:0", cs.FIELD_BYTE_OFFSET, opcode=LDX_W)
    assert done.imm == POISON
    assert outcome.poisoned is not None
    assert "only pointers and unsigned integers" in outcome.poisoned
    assert "only pointers and unsigned integers" in outcome.text()
    # not so where the offset is only computed
    done, _ = relocate(one_field("i", 4, signed=True), one_field("l", 8, signed=True, at=8),
                       2, "0:0", cs.FIELD_BYTE_OFFSET, opcode=MOV_K)
    assert done.imm == 8


def test_the_size_of_an_array_is_that_of_its_elements() -> None:
    """Since libbpf 1.6: an array that has grown is no reason to change a load."""
    def array(n: int, at: int) -> BtfWriter:
        w = BtfWriter()
        u8 = w.add_int("u8", 1)
        a = w.add_array(w.add_array(u8, u8, n), u8, n)
        w.add_struct("s", 256, [("f", a, at * 8)])
        return w

    done, _ = relocate(array(4, 0), array(8, 32), 4, "0:0", cs.FIELD_BYTE_OFFSET, opcode=LDX_B)
    assert (done.opcode, done.off) == (LDX_B, 32)


def test_offsets_that_no_load_can_have() -> None:
    with pytest.raises(RelocationError, match="does not fit"):
        relocate(one_field("u", 4), one_field("u", 4, at=0x8000), 2, "0:0", cs.FIELD_BYTE_OFFSET,
                 opcode=LDX_W)


def test_code_that_disagrees_with_its_own_btf() -> None:
    local, ids = program()
    for opcode in (MOV_K, LDX_W, LDIMM64):
        with pytest.raises(RelocationError, match="do not belong together"):
            relocate(local, kernel(), ids["s"], "0:1", cs.FIELD_BYTE_OFFSET, opcode=opcode,
                     value=5)


@pytest.mark.parametrize(
    ("name", "access", "kind"),
    [
        ("s", "", cs.FIELD_BYTE_OFFSET),
        ("s", ":0", cs.FIELD_BYTE_OFFSET),
        ("s", "0:", cs.FIELD_BYTE_OFFSET),
        ("s", "0::1", cs.FIELD_BYTE_OFFSET),
        ("s", "0:-1", cs.FIELD_BYTE_OFFSET),
        ("s", "0:x", cs.FIELD_BYTE_OFFSET),
        ("s", "0:99", cs.FIELD_BYTE_OFFSET),
        ("s", "0:3:4", cs.FIELD_BYTE_OFFSET),
        ("s", "0:0:0", cs.FIELD_BYTE_OFFSET),
        ("s", ":".join(["0"] * 65), cs.FIELD_BYTE_OFFSET),
        ("s", "1", cs.TYPE_SIZE),
        ("s", "0", cs.ENUMVAL_VALUE),
        ("color", "2", cs.ENUMVAL_VALUE),
        ("color", "0:0", cs.ENUMVAL_VALUE),
        ("s", "0:3:0", cs.FIELD_SIGNED),
        ("s", "0:0", 13),
    ],
)
def test_records_that_make_no_sense(name: str, access: str, kind: int) -> None:
    local, ids = program()
    with pytest.raises(RelocationError):
        relocate(local, kernel(), ids[name], access, kind)


def test_types_and_instructions_that_do_not_exist() -> None:
    local, ids = program()
    with pytest.raises(FormatError, match="there is no type"):
        relocate(local, kernel(), 4711, "0:0", cs.FIELD_BYTE_OFFSET)
    relocator = CoreRelocator(local.btf(), CoreTarget(kernel().btf()))
    with pytest.raises(RelocationError, match="instruction 1"):
        relocator.relocate(bytearray(8), [CoreRelo(1, ids["s"], "0:0", 0, 0)])


def test_anonymous_types_cannot_be_looked_for() -> None:
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    anon = w.add_struct("", 4, [("a", u32, 0)])
    with pytest.raises(RelocationError, match="anonymous struct"):
        relocate(w, kernel(), anon, "0:0", cs.FIELD_BYTE_OFFSET)


# -- candidates -------------------------------------------------------------------------------


def flavoured(*offsets: int, names: tuple[str, ...] = ()) -> BtfWriter:
    """Several structs that are candidates of one another, f at these byte offsets."""
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    for i, at in enumerate(offsets):
        name = names[i] if names else ("s" if i == 0 else f"s___{i}")
        w.add_struct(name, at + 4, [("f" if at >= 0 else "g", u32, abs(at) * 8)])
    return w


def test_flavours_on_both_sides() -> None:
    local = flavoured(0, names=("s___mine",))
    done, _ = relocate(local, flavoured(8, names=("s",)), 2, "0:0", cs.FIELD_BYTE_OFFSET)
    assert done.imm == 8
    done, _ = relocate(local, flavoured(8, names=("s___theirs",)), 2, "0:0", cs.FIELD_BYTE_OFFSET)
    assert done.imm == 8


def test_candidates_that_agree() -> None:
    done, outcome = relocate(flavoured(0), flavoured(8, 8, 8), 2, "0:0", cs.FIELD_BYTE_OFFSET)
    assert done.imm == 8
    assert len(outcome.candidates) == 3


def test_candidates_without_the_field_do_not_count() -> None:
    done, outcome = relocate(flavoured(0), flavoured(-4, 8), 2, "0:0", cs.FIELD_BYTE_OFFSET)
    assert done.imm == 8
    assert [c.spec is not None for c in outcome.candidates] == [False, True]
    assert "does not have it" in outcome.candidates[0].text()


def test_candidates_that_disagree() -> None:
    with pytest.raises(RelocationError, match="disagree") as caught:
        relocate(flavoured(0), flavoured(8, 16), 2, "0:0", cs.FIELD_BYTE_OFFSET)
    assert "@ offset 8" in str(caught.value)
    assert "@ offset 16" in str(caught.value)


def test_a_candidate_that_lost_stays_out() -> None:
    """libbpf keeps the matching candidates for the next relocation of the same type."""
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    s = w.add_struct("s", 8, [("f", u32, 0), ("g", u32, 32)])
    t = BtfWriter()
    t32 = t.add_int("unsigned int", 4)
    t.add_struct("s", 16, [("f", t32, 64), ("g", t32, 96)])
    t.add_struct("s___2", 8, [("g", t32, 32)])
    relocator = CoreRelocator(w.btf(), CoreTarget(t.btf()))
    code = bytearray(bytes((MOV_K, 1, 0, 0, 4, 0, 0, 0)))
    with pytest.raises(RelocationError, match="disagree"):
        relocator.relocate(bytearray(code), [CoreRelo(0, s, "0:1", 0, cs.FIELD_BYTE_OFFSET)])
    relocator.relocate(bytearray(bytes((MOV_K, 1, 0, 0, 0, 0, 0, 0))),
                       [CoreRelo(0, s, "0:0", 0, cs.FIELD_BYTE_OFFSET)])
    relocator.relocate(code, [CoreRelo(0, s, "0:1", 0, cs.FIELD_BYTE_OFFSET)])
    assert code[4] == 12


def test_modules_are_asked_only_for_what_vmlinux_lacks() -> None:
    base = kernel().btf(name="vmlinux")

    def module(name: str, at: int) -> Btf:
        w = BtfWriter(base=base)
        w.add_struct("mod", at + 4, [("f", 1, at * 8)])
        return w.btf(base=base, name=name)

    local = BtfWriter()
    u32 = local.add_int("unsigned int", 4)
    mod = local.add_struct("mod", 4, [("f", u32, 0)])
    s = local.add_struct("s", 4, [("a", u32, 0)])
    loads = []

    def modules() -> dict[str, Btf]:
        loads.append(1)
        return {"one": module("one", 24), "two": module("two", 24)}

    relocator = CoreRelocator(local.btf(), CoreTarget(base, modules))
    code = bytearray(bytes((MOV_K, 1, 0, 0, 0, 0, 0, 0)))
    relocator.relocate(bytearray(code), [CoreRelo(0, s, "0:0", 0, cs.FIELD_BYTE_OFFSET)])
    assert not loads
    (outcome,) = relocator.relocate(code, [CoreRelo(0, mod, "0:0", 0, cs.FIELD_BYTE_OFFSET)])
    assert loads == [1]
    assert code[4] == 24
    assert [c.btf.label for c in outcome.candidates] == ["one", "two"]


def test_vmlinux_is_not_opened_for_what_needs_no_kernel() -> None:
    def never() -> Btf:
        raise AssertionError("opened")

    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    code = bytearray(bytes((MOV_K, 1, 0, 0, 0, 0, 0, 0)))
    CoreRelocator(w.btf(), CoreTarget(never)).relocate(
        code, [CoreRelo(0, u32, "0", 0, cs.TYPE_ID_LOCAL)]
    )
    assert code[4] == u32


def test_explanations_name_what_the_kernel_has() -> None:
    local, ids = program()
    t = BtfWriter()
    u32 = t.add_int("unsigned int", 4)
    t.add_struct("s", 8, [("arr2", u32, 0), ("b", t.add_ptr(0), 0),
                          ("arr", t.add_array(u32, u32, 2), 0)])
    t.add_enum("color", [("GREENISH", 1)])
    for access, kind, name, value, text in (
        ("0:0", cs.FIELD_BYTE_OFFSET, "s", 0, "has no member a"),
        ("0:1", cs.FIELD_BYTE_OFFSET, "s", 4, "has member b as ptr (anon), the program has it as"),
        ("0:3:3", cs.FIELD_BYTE_OFFSET, "s", 28, "struct s.arr has 2 elements in vmlinux"),
        ("1", cs.ENUMVAL_VALUE, "color", 2, "has no value GREEN (it has GREENISH)"),
    ):
        _, outcome = relocate(local, t, ids[name], access, kind, value=value)
        assert outcome.poisoned is not None
        assert text in outcome.poisoned


def test_crafted_nesting_ends() -> None:
    """Anonymous structs that hold each other twice: 2**40 ways to look for a member."""
    t = BtfWriter()
    t.add_struct("s", 4, [("", 2, 0), ("", 2, 0)])
    for i in range(2, 60):
        t.add_struct("", 4, [("", i + 1, 0), ("", i + 1, 0)])
    t.add_int("int", 4)
    with pytest.raises(RelocationError):
        relocate(one_field("u", 4), t, 2, "0:0", cs.FIELD_BYTE_OFFSET)
