# SPDX-License-Identifier: BSD-2-Clause
"""Copies of BTF with DATASEC sizes and variable offsets filled in."""

from __future__ import annotations

import pytest

from pybpf.btf.layout import layout
from pybpf.btf.model import Btf, SecVar
from pybpf.btf.write import BtfWriter, swapped
from pybpf.elf.fixup import Editor
from pybpf.errors import FormatError


def as_compiled(byteorder: str = "little") -> Btf:
    """What clang leaves: a section without size, variables without offsets."""
    w = BtfWriter(byteorder)
    u32 = w.add_int("unsigned int", 4)
    second = w.add_var("second", u32, 1)
    first = w.add_var("first", u32, 1)
    local = w.add_var("local", u32, 0)
    w.add_datasec(".data", 0, [(second, 0, 4), (first, 0, 4), (local, 8, 4)])
    ext = w.add_var("CONFIG_HZ", u32, 2)
    w.add_datasec(".kconfig", 0, [(ext, 0, 0)])
    w.add_datasec("untouched", 0, [(ext, 3, 4)])
    return w.btf()


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_datasecs_are_edited_in_place(byteorder: str) -> None:
    btf = as_compiled(byteorder)
    (data,) = (t for t in btf if t.name == ".data")
    second, first, local = data.variables
    editor = Editor(btf)
    rows = [SecVar(first.type, 0, 4), SecVar(second.type, 4, 4), local]
    editor.datasec(data, 16, rows)
    editor.linkage(btf.type(second.type), 0)
    filled = editor.btf()
    (edited,) = (t for t in filled if t.name == ".data")
    assert (edited.size, list(edited.variables)) == (16, rows)
    assert [filled.type(i).linkage for i in (2, 3, 4)] == [0, 1, 0]
    (untouched,) = (t for t in filled if t.name == "untouched")
    assert (untouched.size, untouched.variables[0].offset) == (0, 3)
    assert len(filled.raw()) == len(btf.raw())
    assert Btf.parse(swapped(filled)).find("first") == btf.find("first")


def test_layouts() -> None:
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    i64 = w.add_int("long", 8, signed=True)
    char = w.add_int("char", 1, signed=True)
    flag = w.add_int("_Bool", 1, boolean=True)
    color = w.add_enum("color", [("RED", 0), ("BLUE", -1)])
    name = w.add_array(char, u32, 16)
    inner = w.add_struct("", 8, [("a", u32, 0, 5), ("b", u32, 5, 11), ("c", u32, 32, 32)])
    ptr = w.add_ptr(0)
    double = w.add_float("double", 8)
    either = w.add_struct("", 8, [("u", u32, 0), ("d", double, 0)], union=True)
    alias = w.add_typedef("color_t", w.add_const(color))
    event = w.add_struct(
        "event",
        64,
        [
            ("id", u32, 0), ("ok", flag, 32), ("at", i64, 64), ("comm", name, 128),
            ("", inner, 256), ("next", ptr, 320), ("c", alias, 384), ("v", either, 448),
        ],
    )  # fmt: skip
    var = w.add_var("last", event)
    fwd = w.add_fwd("later")
    btf = w.btf()
    expected = (
        "struct",
        64,
        (
            ("id", 0, ("int", 4, False)),
            ("ok", 4, ("bool", 1)),
            ("at", 8, ("int", 8, True)),
            ("comm", 16, ("array", ("char", 1), 16, 1)),
            (
                "",
                32,
                (
                    "struct",
                    8,
                    (
                        ("a", 0, ("int", 4, False), 0, 5),
                        ("b", 0, ("int", 4, False), 5, 11),
                        ("c", 4, ("int", 4, False), 0, 32),
                    ),
                ),
            ),
            ("next", 40, ("ptr", 8)),
            ("c", 48, ("enum", 4, True, (("RED", 0), ("BLUE", -1)))),
            ("v", 56, ("union", 8, (("u", 0, ("int", 4, False)), ("d", 0, ("float", 8))))),
        ),
    )
    assert layout(btf, event) == expected
    assert layout(btf, var) == expected
    for bad in (0, fwd):
        with pytest.raises(FormatError):
            layout(btf, bad)


def test_layout_of_what_contains_itself_ends() -> None:
    w = BtfWriter()
    w.raw(w.string("s"), 4 << 24 | 1, 8, w.string("me"), 1, 0)
    with pytest.raises(FormatError, match="nested"):
        layout(w.btf(), 1)


def test_layout_outside_its_struct_is_refused() -> None:
    w = BtfWriter()
    u32 = w.add_int("int", 4)
    s = w.add_struct("s", 4, [("a", u32, 32)])
    with pytest.raises(FormatError, match="outside"):
        layout(w.btf(), s)
