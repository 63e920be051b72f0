# SPDX-License-Identifier: BSD-2-Clause
"""C declarations; where there is a clang, it decides whether they say what BTF says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pybpf
from pybpf.btf.cdecl import CDump, declare, definition, dump, vmlinux_h
from pybpf.btf.consts import KIND_STRUCT, KIND_UNION
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.errors import FormatError


def clang() -> str | None:
    """The newest clang there is."""
    found = shutil.which("clang")
    if found:
        return found
    versions = sorted(
        Path("/usr/lib").glob("llvm-*/bin/clang"), key=lambda p: int(p.parts[3].split("-")[1])
    )
    return str(versions[-1]) if versions else None


def test_declarators() -> None:
    w = BtfWriter()
    i = w.add_int("int", 4, signed=True)
    char = w.add_int("char", 1, signed=True)
    s = w.add_struct("file", 0, [])
    ptr = w.add_ptr(s)
    const_ptr = w.add_ptr(w.add_const(char))
    ptr_const = w.add_const(w.add_ptr(char))
    table = w.add_array(w.add_array(i, i, 4), i, 3)
    op = w.add_ptr(w.add_proto(i, [("f", ptr), ("fmt", const_ptr), ("", 0)]))
    ops = w.add_array(op, i, 2)
    to_array = w.add_ptr(w.add_array(i, i, 3))
    returns = w.add_ptr(w.add_proto(w.add_ptr(w.add_proto(0, [("x", i)]))))
    user = w.add_ptr(w.add_type_tag("user", s))
    twice = w.add_const(w.add_array(w.add_const(w.add_volatile(char)), i, 3))
    btf = w.btf()
    assert declare(btf, ptr, "f") == "struct file *f"
    assert declare(btf, const_ptr, "s") == "const char *s"
    assert declare(btf, ptr_const, "s") == "char *const s"
    assert declare(btf, table, "t") == "int t[3][4]"
    assert declare(btf, op, "open") == "int (*open)(struct file *f, const char *fmt, ...)"
    assert declare(btf, ops, "ops") == "int (*ops[2])(struct file *f, const char *fmt, ...)"
    assert declare(btf, to_array, "a") == "int (*a)[3]"
    assert declare(btf, returns, "g") == "void (*(*g)(void))(int x)"
    assert declare(btf, user) == "struct file *"
    assert declare(btf, 0, "*p") == "void *p"
    assert declare(btf, twice, "name") == "volatile const char name[3]"


def test_definitions() -> None:
    w = BtfWriter()
    i = w.add_int("int", 4, signed=True)
    e = w.add_enum("color", [("RED", 0), ("BLUE", -1)])
    s = w.add_struct("s", 8, [("a", i, 0, 3), ("b", e, 32)])
    t = w.add_typedef("s_t", s)
    f = w.add_func("do_it", w.add_proto(0, [("x", i)]), 1)
    v = w.add_var("count", i, 0)
    btf = w.btf()
    assert definition(btf, e) == "enum color {\n\tRED = 0,\n\tBLUE = -1,\n};\n"
    assert definition(btf, s) == "struct s {\n\tint a : 3;\n\tenum color b;\n};\n"
    assert definition(btf, t) == "typedef struct s s_t;\n"
    assert definition(btf, f) == "void do_it(int x);\n"
    assert definition(btf, v) == "static int count;\n"


def test_order_and_forward_declarations() -> None:
    w = BtfWriter()
    # struct a { struct b *next; a_t *alias; };  typedef struct a a_t;  struct b { struct a a; };
    a = w.add_struct("a", 16, [("next", 2, 0), ("alias", 4, 64)])
    w.add_ptr(5)
    alias = w.add_typedef("a_t", a)
    w.add_ptr(alias)
    w.add_struct("b", 16, [("a", a, 0)])
    text = dump(w.btf())
    assert text.index("struct b;") < text.index("struct a {")
    assert text.index("typedef struct a a_t;") < text.index("struct a {")
    assert text.index("struct a {") < text.index("struct b {")


def test_one_name_twice_becomes_a_flavour() -> None:
    w = BtfWriter()
    i = w.add_int("int", 4)
    w.add_struct("s", 4, [("x", i, 0)])
    w.add_struct("s", 8, [("y", i, 0)])
    w.add_enum("", [("OPT", 1)])
    w.add_enum("", [("OPT", 2)])
    text = dump(w.btf())
    assert "struct s {" in text
    assert "struct s___2 {" in text
    assert "enum {\n\tOPT = 1,\n};" in text
    assert "OPT___2 = 2" in text


def test_what_contains_itself_ends() -> None:
    w = BtfWriter()
    w.raw(w.string("s"), 4 << 24 | 1, 8, w.string("me"), 1, 0)
    w.raw(0, 4 << 24 | 1, 8, w.string("me"), 2, 0)
    for type_id in (1, 2):
        with pytest.raises(FormatError):
            dump(w.btf(), [type_id])
        with pytest.raises(FormatError):
            definition(w.btf(), 2)


@pytest.mark.skipif(clang() is None, reason="no clang")
def test_a_header_for_bpf_programs_makes_their_accesses_relocatable(tmp_path: Path) -> None:
    w = BtfWriter()
    i = w.add_int("int", 4, signed=True)
    w.add_struct("task_struct", 8, [("pid", i, 32)])
    (tmp_path / "vmlinux.h").write_text(vmlinux_h(w.btf()))
    source = tmp_path / "x.bpf.c"
    source.write_text(
        '#include "vmlinux.h"\n#include "vmlinux.h"\n'
        '__attribute__((section("tp_btf/x"))) int f(struct task_struct *t) { return t->pid; }\n'
    )
    sites = {}
    for word in ("", "-DBPF_NO_PRESERVE_ACCESS_INDEX"):
        out = tmp_path / "x.o"
        subprocess.run(
            [clang() or "", "--target=bpf", "-Wall", "-Werror", "-O2", "-g", *word.split(), "-c",
             str(source), "-o", str(out)], check=True, timeout=120,
        )  # fmt: skip
        sites[word] = [r.access for r in pybpf.read(out).functions[0].core]
    assert sites == {"": ["0:0"], "-DBPF_NO_PRESERVE_ACCESS_INDEX": []}


def assertions(btf: Btf, names: CDump) -> Iterator[str]:
    """_Static_assert of every size and offset."""
    for found in btf:
        if found.kind not in (KIND_STRUCT, KIND_UNION) or not found.name:
            continue
        tag = f"{found.kind_name} {names.name(found)}"
        if "va_list" in repr(found.member_names) or found.name == "warn_args":
            continue  # va_list has another size on each machine
        yield f'_Static_assert(sizeof({tag}) == {found.size}, "{tag}");\n'
        for member in found.members:
            if member.name and not member.bit_size:
                place = f"__builtin_offsetof({tag}, {member.name}) == {member.bit_offset // 8}"
                yield f'_Static_assert({place}, "{tag}.{member.name}");\n'


@pytest.mark.skipif(clang() is None, reason="no clang")
@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="the kernel has no BTF")
def test_the_whole_kernel_compiles_with_every_size_and_offset_right(tmp_path: Path) -> None:
    btf = Btf.vmlinux()
    names = CDump(btf)
    source = tmp_path / "vmlinux.c"
    text = "".join(names.header())
    checks = list(assertions(btf, names))
    assert len(checks) > 10_000
    source.write_text(text + "".join(checks))
    done = subprocess.run(
        [clang() or "", "--target=bpf", "-fms-extensions", "-w", "-fsyntax-only", str(source)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:4000]


def test_a_section_that_holds_itself_ends() -> None:
    w = BtfWriter()
    w.add_datasec(".data", 4, [(1, 0, 4)])
    assert definition(w.btf(), 1) == "/* section .data, 4 bytes */\n"


def test_long_gaps_and_repeated_nesting_stay_short() -> None:
    w = BtfWriter()
    u32 = w.add_int("unsigned int", 4)
    far = w.add_struct("far", 1 << 29, [("f", u32, 0xFFFFFFE0)], kflag=False)
    text = definition(w.btf(), far)
    assert "char _pad_0[536870908];" in text
    last = w.add_struct("", 4, [("f", u32, 0)])
    for _ in range(12):
        last = w.add_struct("", 4, [(f"m{i}", last, 0) for i in range(8)], union=True)
    with pytest.raises(FormatError, match="too many lines"):
        definition(w.btf(), last)


def test_an_enum_within_two_structs() -> None:
    """As merging makes it: written in place twice, so that its names must not be the same."""
    w = BtfWriter()
    state = w.add_enum("", [("IDLE", 0), ("BUSY", 1)])
    for name in ("one", "two"):
        w.add_struct(name, 4, [("state", state, 0)])
    text = dump(w.btf())
    assert text.count("IDLE = 0") == 1
    assert text.count("IDLE___2 = 0") == 1
