# SPDX-License-Identifier: BSD-2-Clause
"""Types of several BTFs, each once."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from pybpf.btf.cdecl import dump
from pybpf.btf.consts import KIND_DATASEC, KIND_FUNC, KIND_FWD, KIND_NAMES, KIND_STRUCT, KIND_VAR
from pybpf.btf.dedup import dedup
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter, assemble
from pybpf.elf import read
from pybpf.errors import FormatError, UsageError

OBJECTS = Path(__file__).parent.parent / "objects"


def merged(*parts: Btf) -> tuple[Btf, list[list[int]]]:
    data, ids = dedup(parts)
    return Btf.parse(data, name="merged"), ids


def ring(*, tail: int = 0, known: bool = True) -> Btf:
    """struct node { struct node *next; struct list *owner; }, struct list { struct node *first;
    [struct tail] }; where it is not known, struct list is only declared."""
    w = BtfWriter("little")
    node = 1
    pointer, to_list = 2, 3
    assert w.add_struct("node", 16, [("next", pointer, 0), ("owner", to_list, 64)]) == node
    assert w.add_ptr(node) == pointer
    assert w.add_ptr(4) == to_list
    if not known:
        w.add_fwd("list")
        return w.btf()
    members = [("first", pointer, 0)]
    if tail:
        members.append(("tail", 5, 64))
    w.add_struct("list", 8 + tail, members)
    if tail:
        w.add_int("long", 8, signed=True)
    return w.btf()


def test_types_in_circles() -> None:
    found, ids = merged(ring(), ring(), ring())
    assert found.count == ring().count
    assert ids[0] == ids[1] == ids[2] == [0, 1, 2, 3, 4]


def test_a_difference_far_away_parts_all_that_lead_to_it() -> None:
    found, ids = merged(ring(), ring(tail=8))
    assert [len(found.find(name, KIND_STRUCT)) for name in ("node", "list")] == [2, 2]
    assert set(ids[0][1:]).isdisjoint(ids[1][1:])


def test_declarations_become_what_they_declare() -> None:
    found, ids = merged(ring(known=False), ring())
    assert not found.find("list", KIND_FWD)
    assert found.count == ring().count
    assert ids[0] == ids[1]


def test_a_declaration_of_two_types_stays() -> None:
    found, _ = merged(ring(known=False), ring(), ring(tail=8))
    assert len(found.find("list", KIND_FWD)) == 1
    assert len(found.find("list", KIND_STRUCT)) == 2
    assert len(found.find("node", KIND_STRUCT)) == 3


def test_enums_and_what_is_nearly_the_same() -> None:
    def part(values: list[tuple[str, int]], name: str) -> Btf:
        w = BtfWriter("little")
        enum = w.add_enum("mode", values)
        w.add_struct("s", 8, [("p", w.add_ptr(enum), 0), (name, 1, 64)])
        return w.btf()

    full = [("A", 0), ("B", 1)]
    assert merged(part(full, "m"), part([], "m"))[0].count == part(full, "m").count
    assert len(merged(part(full, "m"), part([("A", 0), ("B", 2)], "m"))[0].find("mode")) == 2
    found = merged(part(full, "m"), part(full, "n"))[0]
    assert (len(found.find("mode")), len(found.find("s"))) == (1, 2)


def test_variables_stay_apart() -> None:
    w = BtfWriter("little")
    number = w.add_int("int", 4)
    w.add_datasec(".data", 4, [(w.add_var("x", number), 0, 4)])
    found, ids = merged(w.btf(), w.btf())
    kinds = Counter(t.kind for t in found)
    assert (kinds[KIND_VAR], kinds[KIND_DATASEC], found.count) == (2, 2, 6)
    assert found.type(ids[1][3]).variables[0].type == ids[1][2]


@pytest.mark.parametrize("name", ["features", "attach", "struct_ops", "lsm"])
def test_an_object_twice(name: str) -> None:
    """Nothing is lost: every type still looks the same in C."""
    btf = read(OBJECTS / f"{name}.bpf.o").btf
    assert btf is not None
    alone, _ = merged(btf)
    found, ids = merged(btf, btf)
    twice = sum(t.kind in (KIND_VAR, KIND_DATASEC) for t in alone)
    assert found.count == alone.count + twice
    for part in ids:
        for old in range(1, btf.count):
            here, there = btf.type(old), found.type(part[old])
            assert (here.kind, here.name, here.vlen) == (there.kind, there.name, there.vlen)
            if here.kind == KIND_STRUCT:
                assert dump(btf, [old]) == dump(found, [part[old]])


@pytest.mark.skipif(shutil.which("bpftool") is None, reason="no bpftool to compare with")
def test_as_many_types_as_libbpf_keeps(tmp_path: Path) -> None:
    """bpftool links objects with libbpf, which dedups their types."""
    names = ["lsm", "module", "arena"]
    linked = tmp_path / "linked.bpf.o"
    inputs = [str(OBJECTS / f"{name}.bpf.o") for name in names]
    done = subprocess.run(["bpftool", "gen", "object", str(linked), *inputs],
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        pytest.skip(f"bpftool does not link them: {done.stderr}")
    theirs = read(linked).btf
    assert theirs is not None
    ours = merged(*[b for n in names if (b := read(OBJECTS / f"{n}.bpf.o").btf) is not None])[0]
    apart = (KIND_VAR, KIND_DATASEC, KIND_FUNC)  # a linker merges these itself

    def kinds(btf: Btf) -> Counter[str]:
        return Counter(KIND_NAMES[t.kind] for t in btf if t.kind not in apart)

    assert kinds(ours) == kinds(theirs)


def test_long_chains_take_no_square_of_their_length() -> None:
    """A pointer to a pointer to …: each differs from the next only at the far end."""
    w = BtfWriter("little")
    last = w.add_int("int", 4)
    for _ in range(30_000):
        last = w.add_ptr(last)
    start = time.process_time()
    found, ids = merged(w.btf(), w.btf())
    assert time.process_time() - start < 60  # a guard against hanging: it takes 1 s
    assert found.count == last + 1
    assert ids[0] == ids[1]


@pytest.mark.parametrize("seed", range(20))
def test_against_comparing_all_pairs(seed: int) -> None:
    """Small random graphs of pointers, structs and declarations, every pair compared."""
    rng = Random(seed)
    count = rng.randrange(3, 14)
    w = BtfWriter("little")
    for _ in range(count):
        target = rng.randrange(0, count + 1)
        if rng.random() < 0.5:
            w.add_ptr(target)
        else:
            members = [("a", target, 0)]
            if rng.random() < 0.5:
                members.append(("b", rng.randrange(0, count + 1), 64))
            w.add_struct(rng.choice("st"), 16, members)
    btf = w.btf()

    def same(a: int, b: int, assumed: frozenset[tuple[int, int]]) -> bool:
        if a == b or (a, b) in assumed:
            return True
        if not a or not b:
            return False
        one, other = btf.type(a), btf.type(b)
        if (one.kind, one.name, one.vlen) != (other.kind, other.name, other.vlen):
            return False
        pairs = (
            [(m.type, n.type) for m, n in zip(one.members, other.members, strict=True)]
            if one.kind == KIND_STRUCT
            else [(one.type, other.type)]
        )
        assumed |= {(a, b)}
        return all(same(x, y, assumed) for x, y in pairs)

    _, (ids,) = merged(btf)
    for a in range(1, count + 1):
        for b in range(1, count + 1):
            assert (ids[a] == ids[b]) == same(a, b, frozenset()), (a, b)


def test_what_cannot_be_merged() -> None:
    with pytest.raises(UsageError, match="no BTF"):
        dedup([])
    with pytest.raises(UsageError, match="big-endian"):
        dedup([ring(), BtfWriter("big").btf()])
    base = ring()
    split = BtfWriter("little", base=base)
    split.add_ptr(1)
    with pytest.raises(UsageError, match="split BTF"):
        dedup([split.btf(base=base)])
    w = BtfWriter("little")
    w.add_ptr(77)
    with pytest.raises(FormatError, match="does not exist"):
        dedup([w.btf(), ring()])


def test_a_kind_that_is_not_known_is_refused() -> None:
    """Its size is told by the layout section, but not which of its words refer to types."""
    words = array("I", [0, 25 << 24, 0, 7])
    layouts = bytes(4 * 25) + struct.pack("=BBH", 4, 0, 0)
    part = Btf.parse(assemble(words, b"\0", sys.byteorder, layout=layouts), name="newer")
    assert part.count == 2
    with pytest.raises(FormatError, match=r"newer: type \[1\] is of an unknown kind, 25"):
        dedup([part])
