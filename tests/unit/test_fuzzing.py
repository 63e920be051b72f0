# SPDX-License-Identifier: BSD-2-Clause
"""tools/fuzz's mutations: they damage objects of both byte orders, and not all of each."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from pybpf.elf.reader import read
from pybpf.errors import PybpfError
from tools.fuzzing import elf
from tools.fuzzing.targets import TARGETS

OBJECTS = Path(__file__).parent.parent / "objects"
BOTH = pytest.mark.parametrize("name", ["features.bpf.o", "features-be.bpf.o"])


@BOTH
def test_sections_are_found(name: str) -> None:
    found = {s.name: s for s in elf._sections((OBJECTS / name).read_bytes())}
    assert {b".text", b".BTF", b".BTF.ext", b".symtab", b".strtab", b".maps"} <= found.keys()
    assert found[b".symtab"].kind == 2


@BOTH
@pytest.mark.parametrize("number", range(len(elf._MUTATORS)))
def test_each_mutation_leaves_something_to_read(name: str, number: int) -> None:
    data = (OBJECTS / name).read_bytes()
    mutate = list(elf._MUTATORS)[number]
    changed = refused = 0
    for seed in range(40):
        made = mutate(data, elf._sections(data), Random(seed))
        changed += made != data
        try:
            read(made, name="mutated")
        except PybpfError:
            refused += 1
    assert changed >= 20
    assert refused < 40


@pytest.mark.parametrize("target", ["elf", "commands"])
def test_targets_take_mutated_objects(target: str) -> None:
    data = (OBJECTS / "live.bpf.o").read_bytes()
    for seed in range(15):
        TARGETS[target].run(TARGETS[target].mutate(data, Random(seed)))
