# SPDX-License-Identifier: BSD-2-Clause
"""The commands: output shapes and exit statuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pybpf.cli import main, run
from pybpf.plan.frozen import from_bytes
from tests.unit.test_compiler import make_kernel

OBJECTS = Path(__file__).parent.parent / "objects"
FEATURES = str(OBJECTS / "features.bpf.o")
FLOOD = str(OBJECTS / "flood.bpf.o")
TREE = Path(__file__).parent.parent.parent


@pytest.fixture
def btf(tmp_path: Path) -> str:
    path = tmp_path / "kernel.btf"
    path.write_bytes(make_kernel().raw())
    return str(path)


def test_relocate_json(btf: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.o"
    bad.write_bytes(b"no ELF at all")
    missing = str(tmp_path / "missing.o")
    assert main(["relocate", "--json", "--btf", btf, str(bad), FEATURES, missing]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["object"] for line in lines] == [str(bad), FEATURES, missing]
    assert "no ELF" in lines[0]["error"]
    assert "No such file" in lines[2]["error"]
    good = lines[1]
    assert list(good) == ["object", "error", "maps", "programs"]
    assert good["error"] is None
    assert list(good["maps"][0]) == [
        "name", "type", "key_size", "value_size", "max_entries", "map_flags", "map_extra",
    ]  # fmt: skip
    assert list(good["programs"][0]) == [
        "name", "section", "prog_type", "expected_attach_type", "prog_flags", "autoload", "error",
        "insns",
    ]  # fmt: skip
    assert "features.rodata" in [m["name"] for m in good["maps"]]
    for program in good["programs"]:
        assert program["error"] is None
        assert len(bytes.fromhex(program["insns"])) % 8 == 0


def test_relocate_succeeds(btf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relocate", "--btf", btf, FEATURES]) == 0
    out = capsys.readouterr()
    assert "program tracing (tp_btf/sched_process_exit; tracing, trace_raw_tp)" in out.out
    assert "surely_no_member" in out.out
    assert out.err == ""


def test_relocate_tells_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "k.btf"
    path.write_bytes(make_kernel(kfuncs=False).raw())
    assert main(["relocate", "--btf", str(path), FEATURES]) == 1
    assert "bpf_rcu_read_lock" in capsys.readouterr().err
    assert main(["relocate", "--json", "--btf", str(path), FEATURES]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    errors = {p["name"]: p["error"] for p in json.loads(line)["programs"]}
    assert errors["first"] is None
    assert "bpf_rcu_read_lock" in errors["tracing"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["relocate"], ["bundle", FEATURES], ["verify", FEATURES, "--set", "x"],
     ["disasm", FEATURES, "no_such_program"], ["verify", FEATURES, "--disable", "nothing"],
     ["verify", FEATURES, "--set-max-entries", "ring=many"]],
)  # fmt: skip
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "relocate" in capsys.readouterr().out


def test_bad_btf_is_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.btf"
    path.write_bytes(b"\x9f\xeb")
    assert main(["relocate", "--btf", str(path), FEATURES]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main(["relocate", "--btf", str(tmp_path / "none"), FEATURES]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.skipif(sys.byteorder != "little", reason="the object is little-endian")
def test_bundle_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_file = tmp_path / "features.plan"
    arguments = ["bundle", FEATURES, "-o", str(plan_file), "--set", "limit=42",
                 "--export", "struct pair", "--disable", "tracing"]  # fmt: skip
    assert main(arguments) == 0
    plan = from_bytes(plan_file.read_bytes())
    assert set(plan.programs) == {"first", "tail_target"}
    assert "struct pair" in plan.layouts
    assert [p.name for p in tmp_path.iterdir()] == ["features.plan"]
    capsys.readouterr()
    assert main(["inspect", FEATURES, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {v["name"]: v["value"] for v in found["variables"]}["limit"] == 7
    assert main(["inspect", FEATURES]) == 0
    assert "extern no_such_kfunc: kfunc, weak" in capsys.readouterr().out


def test_bundle_leaves_nothing_when_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x" / "y"
    assert main(["bundle", FEATURES, "-o", str(out)]) == 1
    assert main(["bundle", FEATURES, "-o", str(tmp_path / "z"), "--set", "limit=x"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("pybpf bundle:") == 2


def test_disasm(btf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disasm", FEATURES, "tail_target", "--btf", btf]) == 0
    out = capsys.readouterr().out
    assert "raw_tp/sched_switch tail_target:" in out
    assert " global_sub:" in out
    assert "call pc+" in out
    assert "features.bpf.c" in out
    assert main(["disasm", "--raw", FEATURES]) == 0
    assert ".text leaf:" in capsys.readouterr().out


def test_disasm_as_json(btf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disasm", FEATURES, "tail_target", "--btf", btf, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["section"], found["program"]) == ("raw_tp/sched_switch", "tail_target")
    assert [row["function"] for row in found["insns"] if "function" in row][1] == "global_sub"
    assert "features.bpf.c" in found["insns"][0]["source"]
    assert main(["disasm", FEATURES, "tail_target", "--btf", btf]) == 0
    text = capsys.readouterr().out
    assert all(row["insn"] in text for row in found["insns"])
    assert main(["disasm", "--raw", "--json", FEATURES, "leaf"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["function"] == "leaf"
    assert main(["disasm", "--raw", FEATURES, "no_such"]) == 2
    assert "there is no function 'no_such'" in capsys.readouterr().err


def test_text_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", FEATURES]) == 0
    assert "variable label: .rodata+12, 8 bytes, label\n" in capsys.readouterr().out
    assert main(["inspect", "--json", FEATURES]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    values = {v["name"]: v["value"] for v in json.loads(line)["variables"]}
    assert values["label"] == b"label\0\0\0".hex()


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pybpf", "inspect", FEATURES], cwd=TREE, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith(FEATURES)


def test_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m pybpf disasm --raw {FEATURES} | head -1", shell=True, cwd=TREE,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pybpf ")
    assert main(["--help"]) == 0
    assert "pybpf inspect x.bpf.o" in capsys.readouterr().out
    assert main(["no-such-command"]) == 2


@pytest.mark.parametrize(
    "words",
    ["x.o", "--no-attach x.o", "x.plan --seconds=0.5 --json", "--pin /sys/fs/bpf/a x.o",
     "x.o --seconds 3 --no-attach"],
)  # fmt: skip
def test_run_reads_plain_arguments_as_argparse_does(words: str) -> None:
    found = run.plain(words.split())
    assert found is not None
    parser = argparse.ArgumentParser()
    run.add(parser)
    for name, value in vars(parser.parse_args(words.split())).items():
        assert getattr(found, name) == value or not (value or getattr(found, name)), name


@pytest.mark.parametrize(
    "words", ["", "x y", "--help", "x --set a=1", "x --no-att", "-- x", "x --seconds q", "x --pin"]
)
def test_run_leaves_other_arguments_to_argparse(words: str) -> None:
    assert run.plain(words.split()) is None


def in_a_command(code: str, *before: str) -> None:
    """Run code in a process that has imported pyelftools as the command does."""
    head = "import sys\nfrom pybpf.cli import quick\nquick.own_process = True\n"
    subprocess.run(
        [sys.executable, "-S", "-c", "".join(before) + head + code],
        check=True, cwd=TREE, env={"PYTHONPATH": ":".join(sys.path[1:])},
    )  # fmt: skip


def test_pyelftools_comes_without_what_reading_never_uses() -> None:
    in_a_command(f"""
quick.import_pyelftools()
assert "elftools.elf.structs" in sys.modules
for name in ("typing", "re", "enum", "pdb", "inspect", "pprint", "traceback"):
    assert name not in sys.modules, name
from pybpf.elf import read
assert read({FEATURES!r}).programs
assert not {{"typing", "enum", "inspect"}} & set(sys.modules)
""")


@pytest.mark.parametrize("words", ["run --no-attach", "inspect", "disasm"])
def test_commands_import_pyelftools_so(words: str) -> None:
    # What becomes of the command does not matter here: only root may run, and not everywhere. An
    # object that pins nothing, and is not attached: what is would stay, and wait for Ctrl-C.
    in_a_command(f"""
from pybpf.cli import main
main([*{words.split()!r}, {FLOOD!r}])
assert "elftools.elf.structs" in sys.modules
assert not {{"typing", "pdb", "inspect"}} & set(sys.modules)
""")


def test_afterwards_all_modules_are_the_real_ones() -> None:
    in_a_command(f"""
quick.import_pyelftools()
import pdb, pprint, traceback, typing, warnings
assert typing.List[int] and typing.NamedTuple and pdb.Pdb and pprint.PrettyPrinter
assert all(m.__file__ for m in (pdb, pprint, traceback, typing, warnings))
# pyelftools' own: what prints, what debugs, and what reads all of an ELF file
from elftools.construct import Container, Probe, ULInt8, Struct, FormatField
from elftools.construct.lib.container import ListContainer
assert str(ListContainer([1, "a"])) == "[1, 'a']"
assert Struct("s", ULInt8("a"), Probe()).parse(b"x").a == 120
assert FormatField[int]
from elftools.elf.elffile import ELFFile
with open({FEATURES!r}, "rb") as file:
    assert ELFFile(file).get_section_by_name(".maps")["sh_size"]
""")


def test_a_pyelftools_that_needs_more_is_imported_as_it_is(tmp_path: Path) -> None:
    for name in ("elftools", "elftools/common", "elftools/elf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "elftools" / "common" / "utils.py").write_text("import inspect\n")
    (tmp_path / "elftools" / "elf" / "structs.py").write_text(
        "import inspect, typing\nclass A(inspect.Signature): pass\n"
        "class B(typing.NamedTuple):\n    a: int\n"
    )
    in_a_command("""
quick.import_pyelftools()
assert not [name for name in sys.modules if name.startswith("elftools")]
import elftools.elf.structs
assert elftools.elf.structs.B(1).a == 1
""", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n")  # fmt: skip
