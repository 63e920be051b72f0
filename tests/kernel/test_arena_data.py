# SPDX-License-Identifier: BSD-2-Clause
"""Variables in an arena: their initial values are there before a program runs."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

import pybpf
from pybpf.errors import RelocationError
from pybpf.kernel import features
from pybpf.kernel.arena import Arena
from pybpf.spec import ObjectSpec
from tests.kernel.lacks import need

pytestmark = pytest.mark.kernel

OBJECT = Path(__file__).parents[1] / "objects" / "arena.bpf.o"


@pytest.fixture
def spec() -> ObjectSpec:
    need("arenas")
    return pybpf.read(OBJECT)


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_initial_values(spec: ObjectSpec, relocate: str) -> None:
    assert (spec.value("first"), spec.value("second")) == (41, 7)
    with pybpf.load(spec, relocate=relocate) as obj:
        assert obj.programs["sum"].test_run(ctx=bytes(8)).retval == 49
        assert obj.programs["sum"].test_run(ctx=bytes(8)).retval == 50
        address, size = obj.arenas["arena"]
        with Arena(obj.maps["arena"], address) as arena:
            start = size - mmap.PAGESIZE if features.wide_offsets() else 0
            page = arena.view[start : start + mmap.PAGESIZE]
            at = spec.variables["first"].offset
            assert int.from_bytes(page[at : at + 4], "little") == 43
            page.release()


def test_values_can_be_set(spec: ObjectSpec) -> None:
    with pybpf.load(spec, variables={"second": -40}) as obj:
        assert obj.programs["sum"].test_run(ctx=bytes(8)).retval == 2


def test_an_arena_too_small(spec: ObjectSpec) -> None:
    with pytest.raises(RelocationError, match="cannot hold"):
        pybpf.load(spec.with_map("arena", max_entries=0))


def test_a_frozen_plan_keeps_them(spec: ObjectSpec) -> None:
    plan = pybpf.from_bytes(pybpf.to_bytes(pybpf.compile(spec)))
    with pybpf.load(plan) as obj:
        assert obj.programs["sum"].test_run(ctx=bytes(8)).retval == 49
