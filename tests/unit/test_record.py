# SPDX-License-Identifier: BSD-2-Clause
"""Records behave as those of typing.NamedTuple and dataclasses do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from typing import Any
from typing import NamedTuple as Standard

import pytest

from pybpf import record
from pybpf.spec import MapSpec, Ref


class Pair(Standard):
    """The standard library's."""

    a: int
    b: int = 2


Mine: Any = type("Mine", (record.NamedTuple,), {"__annotations__": {"a": "int", "b": "int"}, "b": 2,
                                               "__slots__": ()})


@dataclass(frozen=True, slots=True)
class Box:
    """The standard library's."""

    a: int
    b: int = 2


class FrozenBox(record.Frozen):
    """Ours."""

    a: int
    b: int = 2


@pytest.mark.parametrize(
    ("args", "named"), [((1,), {}), ((1, 3), {}), ((1,), {"b": 4}), ((), {"a": 1, "b": 5})]
)
def test_they_are_made_alike(args: tuple[int, ...], named: dict[str, int]) -> None:
    theirs, mine = Pair(*args, **named), Mine(*args, **named)
    assert tuple(mine) == tuple(theirs)
    assert (mine.a, mine.b, mine._asdict()) == (theirs.a, theirs.b, theirs._asdict())
    assert repr(mine) == repr(theirs).replace("Pair", "Mine")
    assert hash(mine) == hash(theirs)
    assert mine._replace(a=9)._asdict() == theirs._replace(a=9)._asdict()
    box, frozen = Box(*args, **named), FrozenBox(*args, **named)
    assert (frozen.a, frozen.b) == (box.a, box.b)
    assert repr(frozen) == repr(box).replace("Box", "FrozenBox")
    assert frozen == FrozenBox(box.a, box.b)
    assert hash(frozen) == hash(FrozenBox(box.a, box.b))
    assert frozen != (box.a, box.b)


@pytest.mark.parametrize(
    ("args", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"c": 4}), ((1,), {"a": 1})]
)
@pytest.mark.parametrize("kind", [Pair, Mine, Box, FrozenBox])
def test_wrong_values_are_refused(kind: Any, args: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        kind(*args, **named)


def test_frozen_stays_frozen() -> None:
    assert issubclass(FrozenInstanceError, AttributeError)
    box = FrozenBox(1)
    with pytest.raises(AttributeError, match="frozen"):
        box.a = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        del box.a
    with pytest.raises(AttributeError):
        box.other = 2
    assert record.replace(box, a=7) == FrozenBox(7)
    assert box == FrozenBox(1)
    with pytest.raises(TypeError, match="no field c"):
        record.replace(box, c=1)


def test_copies_and_pickles() -> None:
    spec = MapSpec("m", 1, 4, 8, data=b"x", initial=((b"k", "v"),))
    ref = Ref(3, "data", ".bss", 8)
    for found in (spec, ref):
        assert copy.deepcopy(found) == found
        assert pickle.loads(pickle.dumps(found)) == found
    assert ref._replace(insn=4) == Ref(4, "data", ".bss", 8, -1)


def test_the_spec_imports_no_code_generators() -> None:
    code = "import sys, pybpf.spec; print(*sorted({'dataclasses', 'typing', 're', 'enum', " \
        "'inspect'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""
