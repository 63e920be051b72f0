# SPDX-License-Identifier: BSD-2-Clause
"""Which types may stand for which: fields, roots ("exists"), and "matches"."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pybpf.btf.write import BtfWriter
from pybpf.errors import RelocationError
from pybpf.reloc import core_spec as cs
from pybpf.reloc.core_types import Budget, types_compatible, types_match
from tests.unit.core_util import relocate

Make = Callable[[BtfWriter], int]


def u32(w: BtfWriter) -> int:
    return w.add_int("unsigned int", 4)


def i32(w: BtfWriter) -> int:
    return w.add_int("int", 4, signed=True)


def u64(w: BtfWriter) -> int:
    return w.add_int("unsigned long", 8)


def odd_int(w: BtfWriter) -> int:
    return w.add_int("int", 4, bits=5, offset=3)


def flt(w: BtfWriter) -> int:
    return w.add_float("float", 4)


def ptr(w: BtfWriter) -> int:
    return w.add_ptr(u32(w))


def ptr_void(w: BtfWriter) -> int:
    return w.add_ptr(0)


def struct(w: BtfWriter) -> int:
    return w.add_struct("x", 4, [("m", u32(w), 0)])


def union(w: BtfWriter) -> int:
    return w.add_struct("x", 4, [("m", u32(w), 0)], union=True)


def other_struct(w: BtfWriter) -> int:
    return w.add_struct("y", 4, [("n", u32(w), 0)])


def fwd(w: BtfWriter) -> int:
    return w.add_fwd("x")


def fwd_union(w: BtfWriter) -> int:
    return w.add_fwd("x", union=True)


def enum(w: BtfWriter) -> int:
    return w.add_enum("e", [("A", 0)])


def enum_flavour(w: BtfWriter) -> int:
    return w.add_enum("e___v2", [("A", 0), ("B", 1)])


def enum_other(w: BtfWriter) -> int:
    return w.add_enum("f", [("A", 0)])


def enum_anon(w: BtfWriter) -> int:
    return w.add_enum("", [("A", 0)])


def enum64(w: BtfWriter) -> int:
    return w.add_enum64("e", [("A", 0)])


def arr(w: BtfWriter) -> int:
    return w.add_array(u32(w), u32(w), 4)


def arr_ptr(w: BtfWriter) -> int:
    return w.add_array(ptr(w), u32(w), 4)


def arr_9(w: BtfWriter) -> int:
    return w.add_array(u32(w), u32(w), 9)


def proto(w: BtfWriter) -> int:
    return w.add_proto(u32(w), [("a", u32(w))])


def proto_2(w: BtfWriter) -> int:
    return w.add_proto(u32(w), [("a", u32(w)), ("b", u32(w))])


def proto_struct(w: BtfWriter) -> int:
    return w.add_proto(u32(w), [("a", struct(w))])


def behind(make: Make) -> Make:
    def pointer(w: BtfWriter) -> int:
        return w.add_ptr(make(w))

    return pointer


def qualified(make: Make) -> Make:
    def const(w: BtfWriter) -> int:
        return w.add_typedef("alias", w.add_const(w.add_volatile(make(w))))

    return const


@pytest.mark.parametrize(
    ("local", "target", "fits"),
    [
        (u32, i32, True), (u32, u64, True), (u32, odd_int, False), (u32, flt, False),
        (u32, ptr, False), (ptr, ptr_void, True), (struct, union, True),
        (struct, other_struct, True), (struct, u32, False), (flt, flt, True),
        (enum, enum, True), (enum, enum_flavour, True), (enum, enum_other, False),
        (enum, enum_anon, True), (enum, enum64, True), (enum, u32, False),
        (arr, arr_9, True), (arr, arr_ptr, False), (arr, u32, False),
        (fwd, fwd, True), (fwd, struct, False), (proto, proto, False),
        (qualified(u32), u64, True), (u32, qualified(u32), True),
    ],
)  # fmt: skip
def test_fields(local: Make, target: Make, fits: bool) -> None:
    a, b = BtfWriter(), BtfWriter()
    s = a.add_struct("s", 64, [("f", local(a), 0)])
    b.add_struct("s", 64, [("f", target(b), 0)])
    _, outcome = relocate(a, b, s, "0:0", cs.FIELD_EXISTS, value=1)
    assert outcome.new == int(fits)


@pytest.mark.parametrize(
    ("local", "target", "compatible", "matches"),
    [
        (u32, u32, True, True),
        (u32, i32, True, False),
        (u32, odd_int, False, False),
        (struct, struct, True, True),
        (struct, union, False, False),
        (struct, other_struct, True, False),
        (struct, fwd, False, False),
        (behind(struct), behind(fwd), False, True),
        (behind(fwd), behind(struct), False, True),
        (behind(fwd), behind(union), False, False),
        (behind(fwd_union), behind(union), False, True),
        (behind(fwd), behind(fwd_union), True, False),
        (behind(fwd), behind(fwd), True, True),
        (behind(struct), behind(union), False, False),
        (behind(struct), behind(other_struct), True, False),
        (fwd, fwd, True, True),
        (fwd, struct, False, False),
        (enum, enum, True, True),
        (enum, enum_flavour, True, True),
        (enum_flavour, enum, True, False),
        (enum, enum_other, True, False),
        (enum, enum64, True, False),  # another size
        (arr, arr, True, True),
        (arr, arr_9, True, False),
        (arr, arr_ptr, False, False),
        (proto, proto, True, True),
        (proto, proto_2, False, False),
        (proto, proto_struct, False, False),
        (behind(proto), behind(proto), True, True),
        (ptr, ptr_void, False, False),
        (ptr_void, ptr_void, True, True),
        (qualified(struct), struct, False, True),  # "exists" compares the root's own kind
        (qualified(struct), qualified(struct), True, True),
        (flt, flt, False, False),
    ],
)
def test_roots(local: Make, target: Make, compatible: bool, matches: bool) -> None:
    a, b = BtfWriter(), BtfWriter()
    x, y = local(a), target(b)
    left, right = a.btf(), b.btf()
    assert types_compatible(left, x, right, y, Budget()) is compatible
    assert types_match(left, x, right, y, Budget()) is matches


def test_matching_structs_member_by_member() -> None:
    def build(*members: tuple[str, Make]) -> BtfWriter:
        w = BtfWriter()
        w.add_struct("s", 64, [(name, make(w), 0) for name, make in members])
        return w

    def verdict(mine: BtfWriter, theirs: BtfWriter) -> int:
        s, t = mine.btf(), theirs.btf()
        return relocate(s, t, s.find("s")[0], "0", cs.TYPE_MATCHES, value=1)[1].new

    whole = build(("a", u32), ("b", ptr), ("c", struct))
    assert verdict(build(("c", struct), ("a", u32)), whole) == 1
    assert verdict(whole, build(("a", u32), ("b", ptr))) == 0
    assert verdict(build(("a", i32)), whole) == 0
    assert verdict(build(("d", u32)), whole) == 0
    assert verdict(build(("a", qualified(u32))), whole) == 1
    assert verdict(build(("c", other_struct)), whole) == 0
    # behind a pointer only the tag counts
    assert verdict(build(("p", behind(struct))), build(("p", behind(fwd)))) == 1


def test_too_deep_is_an_error_not_a_crash() -> None:
    w = BtfWriter()
    for i in range(100):
        w.add_ptr(i + 2)
    w.add_int("int", 4)
    btf = w.btf()
    for relation in (types_compatible, types_match):
        with pytest.raises(RelocationError, match="deep"):
            relation(btf, 1, btf, 1, Budget())


def test_prototypes_that_branch_without_end() -> None:
    w = BtfWriter()
    # func (*)(itself, itself): 2**32 ways down
    w.add_proto(0, [("a", 2), ("b", 2)])
    w.add_ptr(1)
    btf = w.btf()
    for relation in (types_compatible, types_match):
        with pytest.raises(RelocationError):
            relation(btf, 1, btf, 1, Budget())
