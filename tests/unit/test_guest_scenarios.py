# SPDX-License-Identifier: BSD-2-Clause
"""Scenarios as data, and the outcomes that cases are judged by."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.vm import programs
from tests.vm.outcome import ALLOWED, Expected, Outcome, killed, refused, trial
from tests.vm.scenario import Drive, Guest, Scenario

FOUR = (
    Outcome("allowed"),
    Outcome("refused", errno.EPERM),
    Outcome("refused", errno.EACCES),
    Outcome("killed", signal.SIGKILL),
    Outcome("impossible", 0, "no such file"),
)


@pytest.mark.parametrize("outcome", FOUR, ids=str)
@pytest.mark.parametrize("expected", [ALLOWED, refused(errno.EPERM), killed()], ids=str)
def test_only_the_exact_outcome_matches(outcome: Outcome, expected: Expected) -> None:
    same = (outcome.kind, outcome.code) == (expected.kind, expected.code)
    assert expected.matches(outcome) is same


def test_words_for_outcomes() -> None:
    assert [str(outcome) for outcome in FOUR] == [
        "allowed",
        "refused with EPERM",
        "refused with EACCES",
        "killed by SIGKILL",
        "could not be attempted (no such file)",
    ]


def test_trial(tmp_path: Path) -> None:
    assert refused(errno.ENOENT).matches(trial(os.stat, tmp_path / "nothing"))
    assert ALLOWED.matches(trial(os.stat, "/"))
    with pytest.raises(ZeroDivisionError):
        trial(lambda: 1 // 0)


def test_cases_have_names_of_their_own() -> None:
    scenario = Scenario("x")

    @scenario.case()
    def test_first(guest: Guest) -> None:
        pass

    scenario.probe("second", ALLOWED, lambda: Outcome("allowed"), lanes=["7.3"])
    assert list(scenario.cases) == ["first", "second"]
    assert scenario.cases["second"].lanes == ("7.3",)
    with pytest.raises(ValueError, match="two cases named second"):
        scenario.probe("second", ALLOWED, lambda: Outcome("allowed"))


def test_probe_fills_in_what_the_setup_knows() -> None:
    scenario = Scenario("x")
    seen = []

    def probe(path: str, number: int) -> Outcome:
        seen.append((path, number))
        return Outcome("refused", errno.EPERM)

    scenario.probe("one", ALLOWED, probe, lambda guest: guest.state["path"], 7)
    guest = Guest({"lane": "7.3", "images": {}}, {})
    guest.state["path"] = "/tmp/x"
    with pytest.raises(AssertionError, match="expected allowed, but: refused with EPERM"):
        scenario.cases["one"].function(guest)
    assert seen == [("/tmp/x", 7)]
    assert (guest.expected, guest.observed) == ("allowed", "refused with EPERM")


def test_drives_are_checked() -> None:
    with pytest.raises(ValueError, match="no such filesystem"):
        Drive({}, filesystem="btrfs")
    with pytest.raises(ValueError, match="no such signature"):
        Drive({}, signature="mine")


def test_program_runs(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(programs.program(7))
    path.chmod(0o755)
    assert subprocess.run([path]).returncode == 7
