# SPDX-License-Identifier: BSD-2-Clause
"""restrict.keep: the ways of keeping a policy, and what the status says of them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest

from pybpf.errors import PybpfError
from restrict import keep, keep_cli, keep_pins, status
from restrict.errors import RestrictError
from restrict.guard import start_ticks
from restrict.keep import METHODS, State, by_number, is_alive, method

HEADER = Path(__file__).resolve().parents[2] / "bpf/include/policy.h"


def test_numbers_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    numbers = {
        name.lower(): int(number)
        for name, number in re.findall(r"POLICY_KEPT(?:_BY)?_(\w+) = (\d+)", text)
    }
    assert {found.name: found.number for found in METHODS}.items() <= numbers.items()
    assert numbers["pins"] == keep_pins.KEPT


def test_methods_are_told_by_name_and_number() -> None:
    assert len({found.name for found in METHODS}) == len(METHODS)
    for found in METHODS:
        assert method(found.name) is found
        assert by_number(found.number) is found
        assert found.holds
    assert by_number(99) is None


def test_the_strongest_comes_first() -> None:
    assert keep.names("enable")[0] == "pins"
    assert keep.strongest("enable").refuses() is None


def test_what_could_end_it() -> None:
    pins, process = method("pins"), method("process")
    gone, here = State(77, False), State(77, True)
    assert any("unlink" in word for word in pins.removers(gone))
    assert pins.removers(State(77, False, guarded=True)) == []
    assert pins.removers(State(77, True, guarded=True)) == ["process 77, its owner"]
    assert pins.removers(State(1, True, guarded=True, deputy=8)) == [
        "PID 1, its owner", "process 8, the owner's deputy",
    ]  # fmt: skip
    assert "process 77" in process.removers(here)[0]


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    me = os.getpid()
    assert is_alive(me, start_ticks())
    assert not is_alive(me, start_ticks() + 1)
    assert not is_alive(0, 0)
    assert not is_alive((1 << 22) + 1, 5)
    assert is_alive(1, 0)


TEXT = """\
armed 1
audit 0
initramfs_dev 0:0
version 7
generation 3
kept 2
events_map 12
owner 1 start_ticks 0
deputy 4194305 start_ticks 9
guard_link 4
"""


def test_the_status_has_version_generation_and_way() -> None:
    found = status.Status(TEXT)
    assert (found.version, found.generation, found.kept, found.events_map) == (7, 3, 2, 12)
    assert (found.deputy, found.deputy_start_ticks) == (4194305, 9)
    found.attached = True
    found.keep = keep.describe(found, "/nowhere/fsaccess")
    assert found.keep["method"] == "pins"
    assert found.keep["guarded"] is False
    text = found.text()
    assert "version: 7, generation 3" in text
    assert "kept by: pins (pins in a bpf filesystem)" in text
    assert "could be ended by: PID 1, its owner; root, who can unlink" in text
    found.kept = 42
    found.keep = keep.describe(found, "/nowhere/fsaccess")
    assert "could be ended by: not known here" in found.text()


def _arguments(**given: object) -> argparse.Namespace:
    defaults = {
        "keep": None, "foreground": False, "events": False, "no_status": False, "audit": False,
    }  # fmt: skip
    return argparse.Namespace(**{**defaults, **given})


def test_the_way_that_enable_takes() -> None:
    assert keep_cli.chosen(_arguments()) == "pins"
    assert keep_cli.chosen(_arguments(audit=True)) == "process"
    assert keep_cli.chosen(_arguments(audit=True, keep="pins")) == "pins"
    assert keep_cli.chosen(_arguments(foreground=True)) == "process"
    assert keep_cli.chosen(_arguments(keep="process", events=True)) == "process"
    assert keep_cli.chosen(_arguments(keep="pins")) == "pins"
    with pytest.raises(RestrictError, match="--no-status needs a process that stays"):
        keep_cli.chosen(_arguments(keep="pins", no_status=True))


def test_only_the_owner_is_let() -> None:
    found = status.Status(TEXT)
    with pytest.raises(RestrictError, match="its owner is process 1, and this is process"):
        keep_pins.require_owner(found, "upgrading the policy")
    found.owner, found.owner_start_ticks = os.getpid(), start_ticks()
    keep_pins.require_owner(found, "upgrading the policy")
    found.owner_start_ticks += 1  # an earlier process of this number
    with pytest.raises(RestrictError, match="which has ended") as caught:
        keep_pins.require_owner(found, "upgrading the policy")
    assert "until the next boot" in str(caught.value)
    found.deputy, found.deputy_start_ticks = os.getpid(), start_ticks()
    keep_pins.require_owner(found, "upgrading the policy")
    found.owner = found.deputy = 0
    with pytest.raises(RestrictError, match="it has no owner"):
        keep_pins.require_owner(found, "upgrading the policy")


def test_generations_are_told_by_their_folders(tmp_path: Path) -> None:
    for name in ("g1", "g12", "g3", "gx", "other", "g"):
        (tmp_path / name).mkdir()
    found = keep_pins.generations(str(tmp_path))
    assert [generation.number for generation in found] == [1, 3, 12]
    assert keep_pins.generations(str(tmp_path / "nothing")) == []
    assert keep_pins.in_force(str(tmp_path)) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = str(tmp_path / "kept")
    with (
        keep_pins.Turn(folder),
        pytest.raises(PybpfError, match="another process is changing") as caught,
        keep_pins.Turn(folder),
    ):
        pass
    assert "Wait for it" in str(caught.value)
    with keep_pins.Turn(folder):
        assert os.stat(folder).st_mode & 0o777 == 0o700
