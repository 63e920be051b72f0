# SPDX-License-Identifier: BSD-2-Clause
"""Btf: types, names, sizes, split BTF, both byte orders, lazy walking, malformed data."""

from __future__ import annotations

import gc
import mmap
import os
import random
import struct
import threading
from pathlib import Path

import pytest

from pybpf.btf import scan
from pybpf.btf.consts import KIND_FUNC, KIND_STRUCT, KIND_TYPEDEF
from pybpf.btf.format import formats
from pybpf.btf.model import Btf, Enumerator, Member, Param, essential_name
from pybpf.btf.write import BtfWriter, swapped
from pybpf.errors import FormatError, PybpfError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
needs_vmlinux = pytest.mark.skipif(not VMLINUX.exists(), reason="the kernel has no BTF")


def every_kind(byteorder: str = "little") -> BtfWriter:
    """One type of each kind, and the shapes that have traps."""
    w = BtfWriter(byteorder)
    u32 = w.add_int("unsigned int", 4)
    s8 = w.add_int("char", 1, signed=True)
    node = w.raw(w.string("node"), 4 << 24 | 2, 16, w.string("next"), 4, 0, w.string("v"), u32, 64)
    ptr = w.add_ptr(node)
    assert ptr == 4
    w.add_array(s8, u32, 7)
    w.add_struct("flags", 4, [("a", u32, 0, 3), ("b", u32, 3, 29)])
    w.add_struct("either", 8, [("p", ptr, 0), ("n", u32, 0)], union=True)
    w.add_enum("color", [("RED", 0), ("GREEN", -5)])
    w.add_enum64("big", [("HUGE", 1 << 40), ("TOP", (1 << 64) - 1)])
    w.add_enum64("neg", [("MINUS", -(1 << 40))])
    w.add_fwd("later")
    w.add_typedef("node_t", node)
    w.add_volatile(w.add_const(w.add_restrict(ptr)))
    w.add_type_tag("user", node)
    w.add_float("double", 8)
    proto = w.add_proto(u32, [("x", ptr), ("", 0)])
    func = w.add_func("f", proto, 1)
    var = w.add_var("counter", u32, 1)
    w.add_datasec(".data", 4, [(var, 0, 4)])
    w.add_decl_tag("note", func, 0)
    w.add_decl_tag("whole", node, -1)
    return w


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_types_of_a_kind(byteorder: str) -> None:
    """The same as by looking at all, also across the walk's chunks and on top of a base."""
    w = every_kind(byteorder)
    for number in range(20_000):
        w.add_typedef(f"t{number}", 1) if number % 3 else w.add_ptr(1)
    base = w.btf(name="base")
    split = BtfWriter(byteorder, base=base)
    split.add_typedef("own", 2)
    split.add_ptr(base.count)
    for btf in (base, split.btf(name="split")):
        for kinds in ((2,), (KIND_TYPEDEF,), (KIND_FUNC, KIND_STRUCT), ()):
            wanted = [t.id for t in btf if t.kind in kinds]
            assert [t.id for t in btf.of_kind(*kinds)] == wanted
    assert len(list(base.of_kind(KIND_TYPEDEF))) > 13_000


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_every_kind_is_read(byteorder: str) -> None:
    btf = Btf.parse(every_kind(byteorder).build(), name="t")
    assert btf.byteorder == byteorder
    assert btf.type(0).kind == 0
    assert btf.type(0).name == ""
    by_name = {t.name: t for t in btf if t.name}
    assert by_name["node"].members == (Member("next", 4, 0, 0), Member("v", 1, 64, 0))
    assert by_name["flags"].members == (Member("a", 1, 0, 3), Member("b", 1, 3, 29))
    assert by_name["flags"].member_names == ("a", "b")
    assert by_name["color"].enumerators == (Enumerator("RED", 0), Enumerator("GREEN", -5))
    assert by_name["big"].enumerators == (
        Enumerator("HUGE", 1 << 40),
        Enumerator("TOP", (1 << 64) - 1),
    )
    assert by_name["neg"].enumerators == (Enumerator("MINUS", -(1 << 40)),)
    assert by_name["char"].signed
    assert by_name["char"].int_bits == 8
    assert not by_name["unsigned int"].signed
    assert by_name["f"].linkage == 1
    proto = btf.type(by_name["f"].type)
    assert proto.params == (Param("x", 4), Param("", 0))
    assert by_name["counter"].linkage == 1
    assert by_name[".data"].variables[0].size == 4
    assert by_name["note"].component == 0
    assert by_name["whole"].component == -1
    array = next(t for t in btf if t.kind_name == "array")
    assert array.array == (2, 1, 7)
    assert btf.size(array.id) == 7
    assert btf.size(by_name["node_t"].id) == 16
    assert btf.skip(by_name["node_t"].id).name == "node"


def test_swapping_twice_gives_the_same_bytes() -> None:
    data = every_kind().build()
    other = swapped(Btf.parse(data))
    assert other != data
    assert swapped(Btf.parse(other)) == data
    assert other == every_kind("big").build()


def test_bytes_memoryview_and_mmap_read_alike(tmp_path: Path) -> None:
    data = every_kind().build()
    path = tmp_path / "btf"
    path.write_bytes(data)
    with path.open("rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    for source in (data, bytearray(data), memoryview(data), mapped):
        btf = Btf.parse(source)
        assert btf.find("node", KIND_STRUCT) == [3]
        assert btf.raw() == data


@pytest.mark.usefixtures("way")
def test_find_by_name_and_kind() -> None:
    w = BtfWriter()
    first = w.add_struct("file", 0, [])
    other = w.add_typedef("file", first)
    w.add_struct("xfile", 0, [("file", first, 0)])
    w.add_struct("filex", 0, [])
    btf = w.btf()
    assert btf.find("file") == [first, other]
    assert btf.find("file", KIND_TYPEDEF) == [other]
    assert btf.find("file", {KIND_STRUCT, KIND_FUNC}) == [first]
    assert btf.find("nothing") == []
    assert btf.find("") == []
    assert btf.find("fi\0le") == []


@pytest.mark.parametrize(
    ("name", "essential"),
    [
        ("task_struct", "task_struct"),
        ("task_struct___old", "task_struct"),
        ("a___b___c", "a___b"),
        ("a____b", "a____b"),
        ("a___", "a___"),
        ("___a", "___a"),
        ("_a___b", "_a"),
        ("a___b_", "a"),
        ("", ""),
        ("x___y", "x"),
    ],
)
def test_flavours(name: str, essential: str) -> None:
    assert essential_name(name) == essential


@pytest.fixture(params=["searched", "indexed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked for in the data or, where there were many, in an index."""
    if request.param == "indexed":
        monkeypatch.setattr("pybpf.btf.model._SEARCHES", 0)


@pytest.mark.usefixtures("way")
def test_candidates_are_all_flavours_and_nothing_else() -> None:
    w = BtfWriter()
    wanted = [w.add_struct(n, 0, []) for n in ("s", "s___a", "s___b_c")]
    for name in ("s____x", "s___", "ss", "s___a___b", "xs", "s_"):
        w.add_struct(name, 0, [])
    btf = w.btf()
    assert btf.candidates("s") == tuple(wanted)
    assert btf.candidates("s___other") == tuple(wanted)
    assert btf.candidates("s___a___zz") == btf.candidates("s___a___b")
    assert len(btf.candidates("s___a___b")) == 1


def test_many_names_and_few_names_find_the_same() -> None:
    w = BtfWriter()
    for i in range(60):
        w.add_struct(f"s{i % 30}", 4, [(f"s{(i + 1) % 30}", 1, 0)])
        # Values that look like a name's offset followed by a struct's info word.
        w.add_enum(f"e{i}", [(f"s{i % 30}", 4 << 24 | 1)])
    data = w.build()
    names = [f"s{i}" for i in range(30)]
    one_by_one = Btf.parse(data)
    at_once = Btf.parse(data)
    at_once.prefetch(essentials=names)
    indexed = Btf.parse(data)
    indexed.prefetch(names=[f"none{i}" for i in range(300)])
    for name in names:
        assert one_by_one.candidates(name) == at_once.candidates(name) == indexed.candidates(name)
        assert one_by_one.find(name) == indexed.find(name)
        assert len(one_by_one.candidates(name)) == 2


@pytest.mark.usefixtures("way")
def test_split_btf_continues_ids_and_strings() -> None:
    base = every_kind().btf(name="vmlinux")
    w = BtfWriter(base=base)
    node = base.find("node", KIND_STRUCT)[0]
    mine = w.add_struct("mine", 16, [("n", node, 0)])
    own = w.add_struct("node", 8, [])
    # A name may be a string of the base.
    borrowed = w.raw(base.type(node).name_off, 8 << 24, mine)
    module = w.btf(base=base, name="mod")
    assert module.start_id == base.count == mine
    assert module.type(mine).members[0].type == node
    assert module.type(node) is base.type(node)
    assert module.find("node") == [node, own, borrowed]
    assert module.candidates("node") == (own, borrowed)
    assert base.candidates("node") == (node,)
    assert module.count == base.count + 3
    with pytest.raises(FormatError, match="there is no type"):
        module.type(module.count)


def test_layout_section_makes_unknown_kinds_readable() -> None:
    w = BtfWriter()
    w.add_int("int", 4)
    w.raw(0, 25 << 24 | 2, 0, 7, 1, 2, 3, 4)  # one fixed word, two words an entry
    last = w.add_struct("after", 4, [])
    without = w.build()
    with pytest.raises(FormatError, match="kind 25 is not known"):
        Btf.parse(without).type(last)
    layout = bytearray(26 * 4)
    layout[25 * 4 : 25 * 4 + 4] = struct.pack("<BBH", 4, 8, 0x102)
    btf = Btf.parse(w.build(layout=bytes(layout)))
    assert btf.type(last).name == "after"
    other = Btf.parse(swapped(btf))
    assert other.type(last).name == "after"
    assert formats("big").layout.parse(other.raw()[-104:])[25].flags == 0x102
    assert swapped(other) == btf.raw()


def test_wide_vlen_and_kind() -> None:
    w = BtfWriter()
    values = [(f"V{i}", i) for i in range(70_000)]
    big = w.add_enum("wide", values)
    btf = w.btf()
    assert btf.type(big).vlen == 70_000
    assert btf.type(big).enumerators[-1] == ("V69999", 69_999)


@pytest.mark.parametrize("length", range(0, 60, 1))
def test_cut_short_anywhere_is_a_format_error(length: int) -> None:
    data = every_kind().build()
    with pytest.raises(FormatError):
        touch(Btf.parse(data[:length]))


def touch(btf: Btf) -> None:
    """Read all there is to read."""
    for found in btf:
        _ = (found.name, found.members, found.enumerators, found.params, found.variables)
        for member in found.members:
            _ = btf.type(member.type).name
        if found.kind_name in ("typedef", "const", "ptr"):
            btf.skip(found.id)


def test_loops_end_in_an_error() -> None:
    w = BtfWriter()
    w.raw(0, 10 << 24, 2)  # const → const → …
    w.raw(0, 10 << 24, 1)
    w.raw(0, 3 << 24, 0, 3, 0, 5)  # an array of itself
    btf = w.btf()
    with pytest.raises(FormatError, match="loop"):
        btf.skip(1)
    for type_id in (1, 3):
        with pytest.raises(FormatError):
            btf.size(type_id)


def test_sizes_beyond_4_gib_are_refused() -> None:
    w = BtfWriter()
    u64 = w.add_int("u64", 8)
    big = w.add_array(u64, u64, 0x40000000)
    with pytest.raises(FormatError, match="4 GiB"):
        w.btf().size(big)


@pytest.mark.parametrize("seed", range(30))
def test_mutated_btf_raises_nothing_but_our_errors(seed: int) -> None:
    rng = random.Random(seed)
    original = every_kind(rng.choice(("little", "big"))).build()
    for _ in range(40):
        data = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            btf = Btf.parse(bytes(data))
            touch(btf)
            for name in ("node", "color", "f"):
                btf.candidates(name)
            for i in range(btf.count):
                btf.size(i)
        except PybpfError:
            pass


def test_records_agree_with_the_construct_declaration() -> None:
    for byteorder in ("little", "big"):
        data = every_kind(byteorder).build()
        btf = Btf.parse(data)
        declared = formats(byteorder)
        header = declared.header.parse(data)
        start = header.hdr_len + header.type_off
        assert btf.header.type_range == (start, start + header.type_len)
        rows = declared.types.parse(data[start : start + header.type_len])
        assert len(rows) == btf.count - 1
        compare(btf, rows)
        assert declared.types.build(rows) == data[start : start + header.type_len]


def compare(btf: Btf, rows: list[object]) -> None:
    """Hold types read as words against those that construct read."""
    for found, row in zip(btf, rows, strict=True):
        assert (found.name_off, found.kind, found.vlen, int(found.kflag), found.size_or_type) == (
            row.name_off,  # type: ignore[attr-defined]
            row.info["kind"],  # type: ignore[attr-defined]
            row.info["vlen"],  # type: ignore[attr-defined]
            row.info["kflag"],  # type: ignore[attr-defined]
            row.size_or_type,  # type: ignore[attr-defined]
        )
        data = row.data  # type: ignore[attr-defined]
        if found.members:
            assert [(m.type, m.bit_offset | m.bit_size << 24 if found.kflag else m.bit_offset)
                    for m in found.members] == [(d.type, d.offset) for d in data]
        if found.kind_name == "enum":
            assert [e.value & 0xFFFFFFFF for e in found.enumerators] == [
                d.val & 0xFFFFFFFF for d in data
            ]
        if found.kind_name == "enum64":
            assert [e.value & (1 << 64) - 1 for e in found.enumerators] == [
                d.val_hi32 << 32 | d.val_lo32 for d in data
            ]
        if found.params:
            assert [p.type for p in found.params] == [d.type for d in data]
        if found.kind_name == "decl_tag":
            assert found.component == data.component_idx
        if found.kind_name == "array":
            assert found.array == (data.type, data.index_type, data.nelems)


def test_an_opened_file_holds_no_descriptor(tmp_path: Path) -> None:
    """It stays mapped as long as anything of it is in use, and no longer."""
    w = BtfWriter()
    w.add_int("int", 4)
    path = tmp_path / "types.btf"
    path.write_bytes(w.build())
    fds = set(os.listdir("/proc/self/fd"))
    btf = Btf.open(str(path))
    assert set(os.listdir("/proc/self/fd")) == fds
    words = btf.words
    maps = Path("/proc/self/maps")
    assert str(path) in maps.read_text()
    assert btf.find("int") == [1]
    del btf
    gc.collect()
    assert str(path) in maps.read_text()
    assert words[1] == 1 << 24  # KIND_INT
    del words
    assert str(path) not in maps.read_text()


def test_an_empty_file_is_no_btf(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty"):
        Btf.open(str(tmp_path / "empty"))


@needs_vmlinux
def test_vmlinux_is_walked_no_further_than_needed() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    assert Btf.vmlinux() is Btf.vmlinux()
    assert Btf.vmlinux().raw() == VMLINUX.read_bytes()
    assert set(os.listdir("/proc/self/fd")) == fds
    btf = Btf.open(str(VMLINUX))
    (task,) = btf.find("task_struct", KIND_STRUCT)
    assert "pid" in btf.type(task).member_names
    walked = btf._walk.count
    assert walked <= task + scan._CHUNK // 3
    assert btf.count > 10_000
    assert btf.find("task_struct", KIND_STRUCT) == [task]
    whole = Btf.open(str(VMLINUX))
    assert whole.count == btf.count
    assert whole.find("task_struct", KIND_STRUCT) == [task]


def test_threads_may_share_a_btf() -> None:
    w = BtfWriter()
    last = w.add_int("int", 4)
    for i in range(60_000):
        last = w.add_typedef(f"t{i % 50}", last)
    data = w.build()
    for _ in range(5):
        btf = Btf.parse(data)
        found: list[tuple[int, ...]] = []

        def look(btf: Btf, found: list[tuple[int, ...]]) -> None:
            found.append(btf.candidates("t7"))

        threads = [threading.Thread(target=look, args=(btf, found)) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(set(found)) == 1
        assert len(found[0]) == 1200
        assert btf.count == last + 1


@needs_vmlinux
def test_vmlinux_agrees_with_the_construct_declaration() -> None:
    btf = Btf.vmlinux()
    start, _end = btf.header.type_range
    stop = btf.type(min(3000, btf.count - 1)).pos * 4
    rows = formats(btf.byteorder).types.parse(btf.raw()[start : start + stop])
    assert len(rows) == min(3000, btf.count - 1) - 1
    head = [btf.type(i) for i in range(1, len(rows) + 1)]
    compare(head, rows)  # type: ignore[arg-type]
