# SPDX-License-Identifier: BSD-2-Clause
"""restrict.keep: the ways of keeping a policy, and what the status says of them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest

from pybpf.errors import PybpfError
from restrict import abi, config, enable_cli, handover, keep, keep_init, keep_pins, status
from restrict.errors import ConfigError, RestrictError
from restrict.guard import is_alive, start_ticks
from restrict.keep import METHODS, State, by_number, method
from restrict.policy import default_plan, load_plan

HEADER = Path(__file__).resolve().parents[2] / "bpf/include/policy.h"


def test_numbers_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    numbers = {
        name.lower(): int(number)
        for name, number in re.findall(r"POLICY_KEPT(?:_BY)?_(\w+) = (\d+)", text)
    }
    assert {name: number for number, name in enumerate(abi.KEPT_BY)} == numbers
    assert {found.name for found in METHODS} == set(abi.KEPT_BY)


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
    assert pins.removers(State(77, False, guardians=[])) == []
    assert pins.removers(State(77, True, guardians=[77])) == ["process 77, its owner"]
    assert pins.removers(State(1, True, guardians=[1, 9], deputy=8)) == [
        "PID 1, its owner", "process 8, the owner's deputy",
        "process 9, who owns the pins policy over it",
    ]  # fmt: skip
    # Who enabled it for another process is not known: it is never said to be that one.
    assert "process 77" in process.removers(here)[0]
    for state in (gone, here, State(1, True)):
        assert process.removers(state)[-1].startswith("the end of the process that enabled it")


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
    assert enable_cli.chosen(_arguments()) == "pins"
    assert enable_cli.chosen(_arguments(audit=True)) == "process"
    assert enable_cli.chosen(_arguments(audit=True, keep="pins")) == "pins"
    assert enable_cli.chosen(_arguments(foreground=True)) == "process"
    assert enable_cli.chosen(_arguments(keep="process", events=True)) == "process"
    assert enable_cli.chosen(_arguments(keep="pins")) == "pins"
    with pytest.raises(RestrictError, match="--no-status needs a process that stays"):
        enable_cli.chosen(_arguments(keep="pins", no_status=True))


@pytest.mark.parametrize(
    ("init", "keep", "plan", "segment", "name"),
    [
        ("/sbin/init", "", "fsaccess", False, "pins"),
        ("/sbin/init", "", "fsaccess", True, "pins"),
        ("/usr/bin/restrict init --resume -- /sbin/init", "", "fsaccess", False, "exec"),
        # What follows first is the generator's own PID 1, whatever comes on the root.
        ("/usr/bin/restrict init --resume -- /sbin/init", "", "fsaccess", True, "pins"),
        ("/sbin/init --resume", "", "fsaccess", False, "pins"),
        ("/sbin/init", "", "fsaccess_cgroup", False, "ownerless"),
        ("/sbin/init", "", "fsaccess_cgroup", True, "ownerless"),
        ("/sbin/init", "keeper", "fsaccess", False, "keeper"),
        ("/usr/bin/restrict init --resume -- /sbin/init", "pins", "fsaccess", False, "pins"),
    ],
)
def test_the_way_that_init_takes(init: str, keep: str, plan: str, segment: bool, name: str) -> None:
    said: list[str] = []
    found = keep_init.choose(
        _settings(init, keep), load_plan(default_plan(plan)), said.append, segment=segment
    )
    assert found.name == name
    assert (f"keep = auto: {name}, " in " ".join(said)) == (not keep)
    guarded = name == "pins" and not segment  # the successor brings the guard of a segment's pins
    assert (found.guard is not None) == guarded


def test_a_generator_would_end_the_reader_of_events() -> None:
    plan = load_plan(default_plan("fsaccess"))
    settings = config.parse("init = /sbin/init\nevents = yes")
    assert keep_init.way(settings, plan, segment=False)[0] == "pins"
    with pytest.raises(ConfigError, match="successor --events"):
        keep_init.way(settings, plan, segment=True)


def _settings(init: str, keep: str, pins_plan: str = "") -> config.InitConfig:
    lines = [f"init = {init}", f"pins_plan = {pins_plan or default_plan('pins')}"]
    return config.parse("\n".join([*lines, f"keep = {keep}"] if keep else lines))


@pytest.mark.parametrize(
    ("keep", "plan", "segment", "message"),
    [
        ("pins", "fsaccess_cgroup", False, "keep = pins does not fit .* the ownerless policy's"),
        ("exec", "fsaccess_cgroup", True, "keep = exec does not fit"),
        ("ownerless", "fsaccess", False, "is not the ownerless policy's.*bundle --ownerless"),
        # A generator ends it, and with it the policy.
        ("keeper", "fsaccess", True, "for `restrict init` alone"),
    ],
)
def test_ways_that_do_not_fit(keep: str, plan: str, segment: bool, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keep_init.choose(
            _settings("/sbin/init", keep), load_plan(default_plan(plan)), print, segment=segment
        )
    assert re.search(message, " ".join(str(caught.value).split()))


def test_pins_without_a_guard_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    plan = load_plan(default_plan("fsaccess"))
    found = keep_init.choose(
        _settings("/sbin/init", "", str(tmp_path / "none.plan")), plan, said.append
    )
    assert (found.name, found.guard) == ("pins", None)
    assert any("root can take the pins away" in text for text in said)
    # One that is there and cannot be used is no reason to take a weaker way.
    (tmp_path / "bad.plan").write_bytes(b"nothing")
    with pytest.raises(PybpfError, match=r"bad\.plan"):
        keep_init.choose(_settings("/sbin/init", "", str(tmp_path / "bad.plan")), plan, said.append)


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


@pytest.mark.skipif(os.getuid() != 0, reason="the folders must be root's")
def test_generations_are_told_by_their_folders(tmp_path: Path) -> None:
    for name in ("g1", "g12", "g3", "gx", "other", "g"):
        (tmp_path / name).mkdir()
    found = keep_pins.generations(str(tmp_path))
    assert [generation.number for generation in found] == [1, 3, 12]
    assert keep_pins.generations(str(tmp_path / "nothing")) == []
    assert keep_pins.in_force(str(tmp_path)) == []


@pytest.mark.skipif(os.getuid() != 0, reason="the folders must be root's")
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


def test_systemd_is_not_handed_descriptors(tmp_path: Path) -> None:
    for name in ("systemd", "init"):
        (tmp_path / name).touch()
    (tmp_path / "sbin-init").symlink_to("systemd")
    handover.check_successor(str(tmp_path / "init"))
    for name in ("systemd", "sbin-init"):
        with pytest.raises(RestrictError, match="closes the descriptors") as caught:
            handover.check_successor(str(tmp_path / name))
        assert "keep = pins" in str(caught.value)
