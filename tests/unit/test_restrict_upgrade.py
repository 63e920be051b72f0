# SPDX-License-Identifier: BSD-2-Clause
"""restrict.upgrade: versions of Plans, and records carried over between real maps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybpf.errors import KernelError
from pybpf.kernel import map as maps
from pybpf.sys import abi as bpf_abi
from restrict import bundle, fsaccess
from restrict.errors import ConfigError, RestrictError
from restrict.upgrade import Seed, version_of

OBJECTS = Path(__file__).resolve().parents[2] / "bpf/objects"
KEYS = [bytes([number, 0, 0, 0]) for number in range(8)]


def _value(text: str) -> bytes:
    return text.encode().ljust(128, b"\0")


@pytest.fixture
def pair() -> Iterator[tuple[maps.Map, maps.Map]]:
    """Two maps as verity_devices are: the old generation's and the new one's."""
    made = []
    for name in ("old", "new"):
        try:
            made.append(
                maps.create(
                    bpf_abi.BPF_MAP_TYPE_HASH, 4, 128, 64, name=name,
                    flags=bpf_abi.BPF_F_NO_PREALLOC,
                )
            )  # fmt: skip
        except KernelError as e:
            if os.geteuid() == 0:
                raise
            pytest.skip(f"no maps can be made here: {e}")
    with made[0], made[1]:
        yield made[0], made[1]


# ── versions ──


def test_the_committed_plan_has_a_version() -> None:
    assert version_of(fsaccess.load_plan(str(OBJECTS / "fsaccess.plan"))) == 1


@pytest.mark.parametrize("version", [2, 77, (1 << 32) - 1])
def test_a_bundle_has_the_version_asked_for(version: int) -> None:
    assert version_of(bundle.build(policy_version=version)) == version


@pytest.mark.parametrize("version", [0, -1, 1 << 32])
def test_what_is_no_version_is_refused(version: int) -> None:
    with pytest.raises(ConfigError, match="a version is a number from 1 to 4294967295"):
        bundle.build(policy_version=version)


def test_a_plan_of_another_policy_has_none() -> None:
    from pybpf.plan.ops import Plan

    plan = Plan(
        name="x", slots=0, symbols=0, ops=(), attach=(), maps={}, programs={}, links={},
        variables={}, layouts={},
    )  # fmt: skip
    with pytest.raises(RestrictError, match="no policy_version"):
        version_of(plan)


# ── records ──


@pytest.mark.kernel
def test_records_are_carried_over(pair: tuple[maps.Map, maps.Map]) -> None:
    old, new = pair
    for key in KEYS:
        old.update(key, _value("old"))
    seed = Seed(old, new)
    seed.settle()
    assert dict(new.items()) == dict.fromkeys(KEYS, _value("old"))
    assert len(seed.copied) == len(KEYS)


@pytest.mark.kernel
def test_what_the_new_one_knows_itself_stays(pair: tuple[maps.Map, maps.Map]) -> None:
    old, new = pair
    old.update(KEYS[0], _value("old"))
    new.update(KEYS[0], _value("new"))
    seed = Seed(old, new)
    seed.settle()
    assert new.lookup(KEYS[0]) == _value("new")
    old.delete(KEYS[0])
    seed.settle()
    assert new.lookup(KEYS[0]) == _value("new")
    assert not seed.copied


@pytest.mark.kernel
def test_what_changes_or_goes_after_it_was_copied(pair: tuple[maps.Map, maps.Map]) -> None:
    old, new = pair
    for key in KEYS[:4]:
        old.update(key, _value("first"))
    seed = Seed(old, new)
    seed.settle()
    old.update(KEYS[0], _value("revoked"))  # the old program saw a report
    old.delete(KEYS[1])  # the device went
    old.update(KEYS[2], _value("second"))
    new.update(KEYS[2], _value("own"))  # … which the new program saw too
    new.update(KEYS[3], _value("own"))  # only the new one did
    old.update(KEYS[5], _value("late"))
    seed.settle()
    assert {key: new.lookup(key) for key in (*KEYS[:4], KEYS[5])} == {
        KEYS[0]: _value("revoked"),
        KEYS[1]: None,
        KEYS[2]: _value("own"),
        KEYS[3]: _value("own"),
        KEYS[5]: _value("late"),
    }


@pytest.mark.kernel
def test_a_device_that_went_between_two_looks(pair: tuple[maps.Map, maps.Map]) -> None:
    """Its record was read before, and copied after, the programs took it out."""
    old, new = pair
    old.update(KEYS[0], _value("gone"))

    class Late(maps.Map):
        def lookup(self, key: object, default: object = None, *, flags: int = 0) -> object:
            found = super().lookup(key, default, flags=flags)
            self.delete(key)
            return found

    with Late(old.dup(), "old") as late:
        seed = Seed(late, new)
        assert seed.step()
    assert new.lookup(KEYS[0]) is None


@pytest.mark.kernel
def test_no_end_of_changes_is_told(pair: tuple[maps.Map, maps.Map]) -> None:
    old, new = pair

    class Restless(Seed):
        def step(self) -> bool:
            old.update(KEYS[0], os.urandom(128))
            return super().step()

    with pytest.raises(RestrictError, match="come and go all the time"):
        Restless(old, new).settle()


@pytest.mark.kernel
def test_records_of_another_size_are_refused(pair: tuple[maps.Map, maps.Map]) -> None:
    with (
        maps.create(bpf_abi.BPF_MAP_TYPE_HASH, 4, 120, 64, name="small") as small,
        pytest.raises(RestrictError, match="have 128 bytes in the new version and 120 in the old"),
    ):
        Seed(small, pair[1])
