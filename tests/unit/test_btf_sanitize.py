# SPDX-License-Identifier: BSD-2-Clause
"""BTF for kernels that lack kinds: every replacement, and that nothing else changes."""

from __future__ import annotations

import pytest

from pybpf.btf.model import Btf
from pybpf.btf.sanitize import FEATURES, needed, sanitize
from pybpf.btf.write import BtfWriter
from pybpf.errors import UsageError


def modern(byteorder: str = "little") -> Btf:
    w = BtfWriter(byteorder)
    u32 = w.add_int("unsigned int", 4)
    func = w.add_func("f", w.add_proto(u32, [("x", u32)]), 1)
    var = w.add_var("counter", u32, 1)
    w.add_datasec("?.data.x", 8, [(var, 4, 4)])
    w.add_float("float", 4)
    w.add_decl_tag("note", func)
    w.add_ptr(w.add_type_tag("user", u32))
    w.add_enum64("big", [("HUGE", 1 << 40), ("MORE", 1 << 41)])
    w.add_enum("neg", [("MINUS", -1)])
    return w.btf()


def test_what_is_needed() -> None:
    assert needed(modern()) == set(FEATURES)
    w = BtfWriter()
    w.add_int("int", 4)
    assert needed(w.btf()) == set()


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_everything_is_replaced(byteorder: str) -> None:
    btf = modern(byteorder)
    old = Btf.parse(sanitize(btf, set(FEATURES)))
    assert old.count == btf.count + 1
    assert needed(old) == set()
    shown = [(t.kind_name, t.name, t.size_or_type, t.vlen) for t in old]
    assert shown == [
        ("int", "unsigned int", 4, 0),
        ("enum", "", 4, 1),
        ("typedef", "f", 2, 0),
        ("int", "counter", 1, 0),
        ("struct", "__data_x", 8, 1),
        ("struct", "", 4, 0),
        ("int", "note", 1, 0),
        ("const", "", 1, 0),
        ("ptr", "", 8, 0),
        ("union", "big", 8, 2),
        ("enum", "neg", 4, 1),
        ("int", "enum64_placeholder", 8, 0),
    ]
    assert old.type(5).members == (("counter", 4, 32, 0),)
    assert [m.type for m in old.type(10).members] == [12, 12]


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_one_missing_feature_is_all_that_goes(feature: str) -> None:
    btf = modern()
    old = Btf.parse(sanitize(btf, {feature}))
    assert feature not in needed(old)
    # a FUNC is needed for its linkage, a DATASEC for its name
    implied = {"func": {"func_global"}, "datasec": {"qmark_datasec"}}.get(feature, set())
    assert needed(old) == set(FEATURES) - {feature} - implied


def test_nothing_missing_changes_nothing() -> None:
    btf = modern()
    assert sanitize(btf, ()) == btf.raw()


def test_unknown_features_are_refused() -> None:
    with pytest.raises(UsageError, match="telepathy"):
        sanitize(modern(), {"telepathy"})


def test_an_offset_that_no_member_can_have() -> None:
    """Found by fuzzing: in bits it does not fit into its word."""
    w = BtfWriter()
    var = w.add_var("far", w.add_int("int", 4), 1)
    w.add_datasec(".data", 8, [(var, 1 << 31, 4)])
    old = Btf.parse(sanitize(w.btf(), {"datasec"}))
    assert old.type(3).members[0].bit_offset == 0
