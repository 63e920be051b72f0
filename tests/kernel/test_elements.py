# SPDX-License-Identifier: BSD-2-Clause
"""Elements of maps: what is told where one is refused, and what is no plain value."""

from __future__ import annotations

import copy
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import pybpf
from pybpf.errors import KernelError, UsageError
from pybpf.kernel import features
from pybpf.kernel.map import Map, create
from pybpf.kernel.program import Program
from pybpf.plan.live import Object
from pybpf.plan.run import run
from pybpf.sys import abi
from tests.kernel.helpers import ARRAY, HASH, plan, prog, returns

pytestmark = pytest.mark.kernel

LIVE = Path(__file__).parent.parent / "objects" / "live.bpf.o"
FEATURES = Path(__file__).parent.parent / "objects" / "features.bpf.o"
U32 = ("int", 4, False)
INNER = ("struct", 2, (("b", 0, U32, 0, 3), ("s", 1, ("array", ("int", 1, False), 1, 1))))
OUTER = ("struct", 8, (("n", 0, U32), ("in", 4, ("array", INNER, 2, 2))))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"n": -1}, "in value.n: -1 does not fit"),
        ({"in": [{}, {"b": 9}]}, "in value.in[1].b: 9 does not fit into its 3 bits"),
        ({"in": [{"s": [256]}]}, "in value.in[0].s[0]: 256 does not fit"),
        ({"in": 5}, "in value.in: a sequence of at most 2"),
        (5, "in value: a dict of members is needed"),
    ],
)
def test_the_member_that_does_not_fit_is_named(prefix: str, value: object, said: str) -> None:
    with create(HASH, 4, 8, 2, name=f"{prefix}_h", value_layout=OUTER) as m:
        with pytest.raises(UsageError) as caught:
            m[1] = value
        assert str(caught.value).startswith(f"map {prefix}_h, {said}")
        with pytest.raises(UsageError, match=f"map {prefix}_h, in key: "):
            m[b"12"] = {}


def hint(action: object, *arguments: object, **named: object) -> str:
    assert callable(action)
    with pytest.raises(KernelError) as caught:
        action(*arguments, **named)
    assert caught.value.hint is not None, str(caught.value)
    return caught.value.hint


def test_refused_elements_come_with_what_to_do(prefix: str) -> None:
    with create(HASH, 4, 4, 2, name=f"{prefix}_h") as m:
        m.update_batch({1: 1, 2: 2})
        assert hint(m.update, 3, 3) == "It is full: max_entries is 2."
        assert "BPF_NOEXIST" in hint(m.update, 1, 1, abi.BPF_NOEXIST)
        assert "BPF_EXIST" in hint(m.update, 9, 1, abi.BPF_EXIST)
        assert hint(m.delete_batch, [1, 7, 2]) == "There is no key 7; those before it are deleted."
        assert list(m.items()) == [(b"\2\0\0\0", b"\2\0\0\0")]
        m.freeze()
        assert "frozen" in hint(m.update, 1, 1)
    with create(ARRAY, 4, 4, 2, name=f"{prefix}_a") as m:
        assert hint(m.update, 2, 2) == "Its keys are the numbers from 0 to 1."
        assert "stay" in hint(m.delete, 0)
        assert list(m) == [0, 1]
    with pytest.raises(KernelError, match="key_size is 0"):
        create(HASH, 0, 4, 2)
    with pytest.raises(UsageError, match="numbers from 0 on"):
        create(HASH, 4, 4, -1)


def test_a_bloom_filter_is_asked_for_values(prefix: str) -> None:
    bloom = abi.BPF_MAP_TYPE_BLOOM_FILTER
    with create(bloom, 0, 4, 64, name=f"{prefix}_b", value_layout=U32) as m:
        m.update(None, 5)
        assert 5 in m
        assert sum(n in m for n in range(1000, 1100)) < 50
        for ask in (m.lookup, m.pop):
            with pytest.raises(UsageError, match=r"gives no elements\. Ask it `value in m`"):
                ask(None)


def test_maps_and_programs_in_maps_are_numbers(prefix: str) -> None:
    programs = abi.BPF_MAP_TYPE_PROG_ARRAY
    with (
        run(plan(prog(0, f"{prefix}_p", returns(7)), programs={"p": 0})) as obj,
        create(ARRAY, 4, 4, 1, name=f"{prefix}_in") as inner,
        create(HASH, 4, 4, 1, name=f"{prefix}_odd") as odd,
        create(abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 3, inner_map_fd=inner.fd) as outer,
        create(programs, 4, 4, 3, name=f"{prefix}_j") as jumps,
    ):
        outer[1] = inner
        jumps[2] = obj.programs["p"]
        assert list(outer.items()) == [(1, inner.id)]
        assert list(jumps.items()) == [(2, obj.programs["p"].id)]
        assert outer[1] == inner.id
        assert "max_entries" in hint(outer.update, 0, odd)


@pytest.fixture
def live() -> Iterator[Object]:
    spec = pybpf.read(FEATURES).with_map("pinned", pin=0)
    with pybpf.load(spec, disable=list(spec.programs)) as found:
        yield found


def test_a_map_opened_by_its_id_is_typed_by_its_btf(live: Object) -> None:
    with pybpf.typed(Map.from_id(live.maps[".data"].id)) as data:
        assert data[0]["start"] == live.vars["start"]
    typed = [m for m in live.maps.values() if m.key_layout and m.value_layout]
    assert typed
    for own in typed:
        with pybpf.typed(Map.from_id(own.id)) as found:
            assert (found.key_layout, found.value_layout) == (own.key_layout, own.value_layout)
    with create(HASH, 4, 4, 1) as plain:
        assert pybpf.typed(plain) is plain
        assert plain.value_layout is None


def test_variables_are_listed(live: Object) -> None:
    assert repr(live.vars).startswith("<Variables of features: ")
    assert "start" in repr(live.vars)
    with pytest.raises(UsageError, match="variable start: an integer is needed"):
        live.vars["start"] = "x"


def test_what_a_program_is_run_with(prefix: str) -> None:
    with run(plan(prog(0, f"{prefix}_p", returns(7)), programs={"p": 0})) as obj:
        program: Program = obj.programs["p"]
        assert "14 bytes" in hint(program.test_run, b"x")
        assert "give data" in hint(program.test_run)
        with pytest.raises(UsageError, match="without a layout the context is bytes, not dict"):
            program.test_run(ctx={"a": 1})
        with socket.socket() as plain:
            program.attach_socket(plain)
        with pytest.raises(UsageError, match=r"object .*, program p: .* Program.attach_socket"):
            obj.attach_program("p")
        with pytest.raises(UsageError, match=r"object .*: there is no program 'q'"):
            obj.attach_program("q")


def test_links_take_programs_and_only_their_fields(prefix: str) -> None:
    raw = abi.BPF_PROG_TYPE_RAW_TRACEPOINT
    one = prog(0, f"{prefix}_p", returns(0), raw, section="raw_tp/sys_enter")
    with run(plan(one, programs={"p": 0})) as obj:
        for more, said in (
            ({"frobnicate": 3}, "has no 'frobnicate'\\. There are: "),
            ({"pid": 3}, "has no 'pid'"),
            ({"netfilter__priority": "x"}, "netfilter__priority is a number, not str"),
        ):
            with pytest.raises(UsageError, match=said):
                obj.attach_program("p", "sys_enter", **more)
        link = obj.attach_program("p", "sys_enter")
        assert link is not None
        with pytest.raises(KernelError, match="BPF_LINK_UPDATE"):  # these cannot be
            link.update(obj.programs["p"], old_program=obj.programs["p"])


def test_a_plan_takes_no_edits_at_all() -> None:
    compiled = pybpf.compile(pybpf.read(LIVE))
    for named in ({"relocate": "python"}, {"pin_root": "/sys/fs/bpf"}, {"export": ["int"]}):
        with pytest.raises(UsageError, match="executed as it is"):
            pybpf.load(compiled, **named)


def test_specs_are_copied_and_pickled() -> None:
    spec = pybpf.read(FEATURES)
    expected = pybpf.to_bytes(pybpf.compile(spec))
    for other in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert pybpf.to_bytes(pybpf.compile(other)) == expected


@pytest.mark.parametrize("number", [-1, 1 << 32, "8"])
def test_sizes_of_maps_are_numbers(number: object) -> None:
    with pytest.raises(UsageError, match=r"map .*: max_entries is a number of 32 bits"):
        pybpf.read(LIVE).with_map(next(iter(pybpf.read(LIVE).maps)), max_entries=number)


def test_features_that_nobody_knows() -> None:
    for ask in (features.probe, features.requires):
        with pytest.raises(UsageError, match="there is no feature 'nope'"):
            ask("nope")
