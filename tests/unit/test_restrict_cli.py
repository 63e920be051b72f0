# SPDX-License-Identifier: BSD-2-Clause
"""The commands' usage, exit status and errors, on a machine that enforces nothing."""

from __future__ import annotations

import json
import os
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


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("events", "--fd", "999"), 1, "fd 999: it is not open"),
        (("events", "--fd", "0"), 1, "fd 0: it is no BPF ring buffer"),
        (("events", "--fd", "-1"), 2, "--fd"),
        (("events", "--fd", "99999999999999"), 2, "--fd"),
        (("status", "--path", "/"), 1, "cannot be read"),
        (("status", "--path", "/etc/passwd"), 1, "not the status of the fsaccess policy"),
        (("bundle", "--object", "/no/object", "-o", "x"), 1, "/no/object: the object cannot be"),
        (("bundle", "-o", "/no/folder/x"), 1, "/no/folder/x: the file cannot be written"),
        (("bundle", "--policy-version", "99999999999", "-o", "x"), 1, "from 1 to 4294967295"),
        (("simulate", "--assume", "/no/mount"), 1, "/no/mount"),
        (("userns", "install", "--plan", "/etc/passwd"), 1, "/etc/passwd: this is no frozen Plan"),
        (("userns", "install", "--plan", "/dev/zero"), 1, "/dev/zero: it has more than"),
        (("userns", "reset", "9" * 5000), 2, "32 bits"),
        (("userns", "reset", "4294967296"), 2, "32 bits"),
        (("userns", "reset", "/no/path"), 1, "/no/path: it cannot be opened"),
        (("userns", "reset", "/etc/passwd"), 1, "not one of a user namespace"),
        (("pins", "install", "--owner", "99999999"), 1, "there is no process 99999999"),
        (("pins", "install", "--owner", "-4"), 1, "there is no process -4"),
        (("pins", "list", "--path", "/etc"), 1, "Type `restrict pins install`"),
        (("pins", "register", "btf", "1"), 2, "invalid choice"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: tuple[str, ...], status: int, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "restrict", *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert said in done.stderr
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    done = restrict("bundle", "-o", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "no regular file, so it is not replaced" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = restrict("userns", "uninstall", "--pins", str(file))
    assert (done.returncode, done.stderr) == (1, "")
    assert "nothing is pinned" in done.stdout


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


@pytest.mark.skipif(os.getuid() != 0, reason="the folders must be root's")
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


def test_one_reader_at_a_time(tmp_path: Path) -> None:
    from restrict.commands import Turn
    from restrict.errors import RestrictError

    with (
        Turn(str(tmp_path), "pins"),
        pytest.raises(RestrictError, match="another `restrict pins watch` runs"),
        Turn(str(tmp_path), "pins"),
    ):
        pass
    with Turn(str(tmp_path), "pins"):
        pass
