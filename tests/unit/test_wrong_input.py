# SPDX-License-Identifier: BSD-2-Clause
"""Files that are nothing to read, given to every command that reads one: our error, at once."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybpf.btf.write import BtfWriter
from pybpf.cli import main
from pybpf.sys.files import LARGEST, read_file

OBJECT = Path(__file__).parent.parent / "objects/live.bpf.o"
READERS = (
    "inspect",
    "relocate",
    "disasm",
    "verify",
    "run",
    "btf dump",
    "bundle -o x",
    "btf merge -o x",
)


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Neither endless (SIGALRM ends the run) nor more memory than any input may take."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limits[1]))
    signal.alarm(600)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def _refused(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> str:
    assert main(words) == status
    said = capsys.readouterr().err
    assert said.startswith(f"pybpf {words[0]}: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("what", ["zeroes", "fifo", "folder", "text", "huge", "program"])
def test_files_that_hold_nothing_to_read(
    command: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / what
    if what == "zeroes":
        path = Path("/dev/zero")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("no object\n")
    elif what == "huge":
        with path.open("wb") as file:
            file.write(b"\x7fELF")
            file.truncate(10 << 30)
    else:
        path.write_bytes(OBJECT.read_bytes()[:18] + b"\x3e\0" + OBJECT.read_bytes()[20:])
    said = _refused(capsys, *command.split(), str(path))
    assert path.name in said
    if what == "program":
        assert "ELF machine 62 is not BPF" in said
    assert not Path("x").exists()


@pytest.mark.parametrize("what", ["zeroes", "text", "object", "folder", "none"])
def test_kernels_that_are_none(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no BTF\n")
    paths = {"zeroes": "/dev/zero", "object": str(OBJECT), "folder": str(tmp_path)}
    path = paths.get(what, str(tmp_path / what))
    for command in ("relocate", "disasm"):
        assert Path(path).name in _refused(capsys, command, str(OBJECT), "--btf", path)


def test_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["relocate", str(OBJECT), "--config"]
    types = BtfWriter("little")
    types.add_int("int", 4)
    (tmp_path / "kernel").write_bytes(types.build())
    config, kernel = tmp_path / "config", ["--btf", str(tmp_path / "kernel")]
    assert "goes with --btf" in _refused(capsys, *command, str(config), status=2)
    assert str(config) in _refused(capsys, *command, str(config), *kernel)
    config.write_text("nonsense\n")
    assert "no line CONFIG_" in _refused(capsys, *command, str(config), *kernel)
    config.write_bytes(b"\x1f\x8bnonsense")
    assert "unpacked" in _refused(capsys, *command, str(config), *kernel)
    config.write_bytes(gzip.compress(b"CONFIG_HZ=250\n"))
    main([*command, str(config), *kernel])
    assert str(config) not in capsys.readouterr().err


def test_bundles_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "none/x"):
        assert f"{path}: " in _refused(capsys, "bundle", str(OBJECT), "-o", str(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nosuchmodule", "\u00b2", "99999999999999999999"])
def test_btf_that_is_nowhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["btf", "dump", name]) in (1, 2)
    assert capsys.readouterr().err.startswith("pybpf btf: ")


def test_what_another_process_writes() -> None:
    ours, theirs = os.pipe()
    if not os.fork():
        os.write(theirs, b"a" * 5000)
        os._exit(0)
    os.close(theirs)
    assert read_file(f"/dev/fd/{ours}") == b"a" * 5000
    os.close(ours)
    os.wait()
    assert LARGEST < 128 << 20  # read twice over, still less than an input may take


@pytest.mark.skipif(sys.byteorder != "little", reason="the object is big-endian")
def test_the_other_byte_order_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(OBJECT.with_name("live-be.bpf.o"))
    said = _refused(capsys, "verify", path)
    assert "the object is big-endian" in said
    assert main(["verify", "--json", path]) == 1
    programs = json.loads(capsys.readouterr().out)["programs"]
    assert len(programs) > 1
    assert {p["errno"] for p in programs} == {4003}  # as libbpf
