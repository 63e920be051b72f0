# SPDX-License-Identifier: BSD-2-Clause
"""restrict bundle: settings, and the plan that stands in the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from pybpf.plan.frozen import from_bytes
from restrict import abi, bundle, fsaccess, guard, policy
from restrict.errors import ConfigError

PLAN = Path(__file__).resolve().parents[2] / "bpf/objects/fsaccess.plan"


def test_the_plan_in_the_tree_is_what_the_object_gives() -> None:
    assert from_bytes(PLAN.read_bytes()) == bundle.build()


def test_the_ownerless_plan_is_what_the_command_makes(tmp_path: Path) -> None:
    from restrict.cli import main

    made = tmp_path / "made.plan"
    assert main(["bundle", "--ownerless", "-o", str(made)]) == 0
    assert made.read_bytes() == PLAN.with_name("fsaccess_cgroup.plan").read_bytes()
    assert main(["bundle", "--ownerless", "--deny-ptrace", "-o", str(made)]) == 1


def test_it_is_the_default() -> None:
    assert Path(policy.default_plan("fsaccess")) == PLAN


def test_it_has_what_restrict_needs() -> None:
    plan = fsaccess.load_plan(str(PLAN))
    places = guard.offsets_of(plan.variables)
    assert set(places) == set(guard.GLOBALS)
    assert {"verity_devices", "births", "counters", "events", ".bss", ".rodata"} == set(plan.maps)
    assert {fsaccess.STATUS, fsaccess.SYSCTL} == set(plan.programs) - set(plan.links)


def test_filesystems() -> None:
    found = bundle.spec(filesystems=["ext4", "erofs"], deny_ptrace=True)
    place = found.variables["filesystem_magics"]
    data = found.maps[place.map].data
    assert data is not None
    words = data[place.offset : place.offset + place.size]
    numbers = [int.from_bytes(words[i : i + 4], "little") for i in range(0, len(words), 4)]
    assert numbers == [abi.MAGICS["ext4"], abi.MAGICS["erofs"], 0, 0, 0, 0, 0, 0]
    place = found.variables["deny_ptrace"]
    data = found.maps[place.map].data
    assert data is not None
    assert data[place.offset : place.offset + 4] == b"\1\0\0\0"


def test_the_gate_is_off_unless_asked_for() -> None:
    assert "fsaccess_dm_ioctl" not in bundle.build().programs
    assert "fsaccess_dm_ioctl" in bundle.build(gate_device_mapper=True).links


@pytest.mark.parametrize("names", [["fuse"], ["btrfs"], ["tmpfs"], [], ["ext4"] * 9])
def test_filesystems_that_cannot_be_trusted_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError):
        bundle.magics(names)


def test_the_file_is_replaced_at_once(tmp_path: Path) -> None:
    target = tmp_path / "x.plan"
    target.write_bytes(b"old")
    size = bundle.write(bundle.build(), target)
    assert target.stat().st_size == size
    assert [p.name for p in tmp_path.iterdir()] == ["x.plan"]


def test_damaged_files_are_told_by_name(tmp_path: Path) -> None:
    from pybpf.errors import FormatError

    target = tmp_path / "x.plan"
    target.write_bytes(PLAN.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"x\.plan"):
        fsaccess.load_plan(str(target))
