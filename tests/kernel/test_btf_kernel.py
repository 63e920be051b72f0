# SPDX-License-Identifier: BSD-2-Clause
"""The kernel takes the BTF that we write, and gives back what we read."""

from __future__ import annotations

import os

import pytest

from pybpf.btf.layout import layout
from pybpf.btf.model import Btf, SecVar
from pybpf.btf.sanitize import FEATURES, sanitize
from pybpf.btf.write import BtfWriter
from pybpf.elf.fixup import Editor
from pybpf.errors import KernelError
from pybpf.sys import bpf

pytestmark = pytest.mark.kernel


def program() -> BtfWriter:
    """One of every kind, as a compiler leaves it: the section without size and offsets."""
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    func = w.add_func("f", w.add_proto(u32, [("x", u32)]), 1)
    second, first = w.add_var("second", u32), w.add_var("first", u32)
    w.add_datasec(".data", 0, [(second, 0, 4), (first, 0, 4)])
    w.add_float("float", 4)
    w.add_decl_tag("note", func)
    w.add_ptr(w.add_type_tag("user", u32))
    w.add_enum64("big", [("HUGE", 1 << 40)])
    w.add_enum("neg", [("MINUS", -1)])
    w.add_struct("bits", 4, [("a", u32, 0, 3), ("b", u32, 3, 29)])
    w.add_struct("later", 8, [("p", w.add_ptr(w.add_fwd("fwd")), 0)])
    w.add_typedef("alias", w.add_const(w.add_volatile(w.add_array(u32, u32, 3))))
    return w


def filled() -> Btf:
    """The same with the section as a linker would leave it."""
    btf = program().btf()
    (data,) = (t for t in btf if t.name == ".data")
    second, first = data.variables
    editor = Editor(btf)
    editor.datasec(data, 8, [SecVar(first.type, 0, 4), SecVar(second.type, 4, 4)])
    return editor.btf()


def test_what_we_write_loads_once_it_is_filled_in() -> None:
    btf = program().btf()
    with pytest.raises(KernelError):
        bpf.btf_load(btf.raw())
    os.close(bpf.btf_load(filled().raw()))


@pytest.mark.parametrize("feature", [*sorted(FEATURES), "all"])
def test_sanitised_btf_loads(feature: str) -> None:
    os.close(bpf.btf_load(sanitize(filled(), FEATURES if feature == "all" else {feature})))


@pytest.mark.skipif(not os.path.exists("/sys/kernel/btf/vmlinux"), reason="no kernel BTF")
def test_every_struct_of_the_kernel_has_a_layout() -> None:
    btf = Btf.vmlinux()
    done = 0
    for type_id in range(1, min(btf.count, 12_000)):
        found = btf.type(type_id)
        if found.kind_name in ("struct", "union"):
            assert layout(btf, type_id)[1] == found.size
            done += 1
    assert done > 500
