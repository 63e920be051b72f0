# SPDX-License-Identifier: BSD-2-Clause
"""The commands' usage, exit status and errors, on a machine that enforces nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def restrict(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "restrict", *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nothing",),
        ("enable", "--mode", "everything"),
        ("enable", "--owner", "me"),
        ("bundle",),
        ("init", "--resume"),
        ("init", "--resume", "--plan", "x", "/sbin/init"),
        ("init", "one", "two"),
        ("init", "--colour"),
    ],
)
def test_usage(words: tuple[str, ...]) -> None:
    done = restrict(*words)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_init_is_for_pid_1() -> None:
    done = restrict("init")
    assert done.returncode == 1
    assert "restrict enable" in done.stderr


def test_init_help_lists_every_key() -> None:
    from restrict import config

    done = restrict("init", "--help")
    assert done.returncode == 0
    for key in (*config._DEFAULTS, *config._REPEATED):
        assert f"\n    {key} = " in done.stdout


def test_resume_without_a_handover(tmp_path: Path) -> None:
    done = restrict("init", "--resume", "--", "/bin/true")
    assert done.returncode == 1
    assert "RESTRICT_HANDOVER is not in the environment" in done.stderr


def test_status_of_nothing(tmp_path: Path) -> None:
    done = restrict("status", "--json", "--path", str(tmp_path / "none"))
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"in_force": False}


def test_events_of_nobody(tmp_path: Path) -> None:
    done = restrict("events", "--socket", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "nobody offers events" in done.stderr


def test_check_says_what_is_missing() -> None:
    """This machine may or may not meet the prerequisites: status and answer must agree."""
    done = restrict("check", "--json")
    found = json.loads(done.stdout)
    blocking = [f["name"] for f in found["findings"] if f["required"] and not f["ok"]]
    assert found["ok"] == (not blocking)
    assert done.returncode == (1 if blocking else 0)
    assert all(f["remedy"] for f in found["findings"] if f["required"] and not f["ok"])


def test_a_missing_plan_is_told(tmp_path: Path) -> None:
    """bundle on an object that is none: our error, no traceback of a dependency."""
    bad = tmp_path / "bad.o"
    bad.write_bytes(b"\x7fELF nothing")
    done = restrict("bundle", "--object", str(bad), "-o", str(tmp_path / "x.plan"))
    assert done.returncode == 1
    assert "bad.o" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.plan").exists()


def test_bundle(tmp_path: Path) -> None:
    done = restrict("bundle", "-o", str(tmp_path / "x.plan"), "--json", "--filesystem", "erofs")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == (tmp_path / "x.plan").stat().st_size
    assert "fsaccess_exec" in found["programs"]
    done = restrict("bundle", "-o", str(tmp_path / "y.plan"), "--filesystem", "btrfs")
    assert done.returncode == 1
    assert "never be trusted" in done.stderr
