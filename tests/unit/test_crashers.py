# SPDX-License-Identifier: BSD-2-Clause
"""Inputs that once broke something: found by tools/fuzz, or thought of while reading."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pybpf.btf.cdecl import dump
from pybpf.btf.layout import layout
from pybpf.btf.write import BtfWriter
from pybpf.cli import main
from pybpf.compiler.compile import compile
from pybpf.compiler.target import Target
from pybpf.elf.reader import read
from pybpf.errors import FormatError
from pybpf.kernel.layout import decode
from pybpf.plan import explain, ops
from pybpf.plan.frozen import HEADER, MAGIC, VERSION, from_bytes, to_bytes
from tests.unit.elfwriter import RETURN_0, ElfWriter, insn, load

INT = ("int", 4, False)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A bound against hangs, far above the work; tools/fuzz judges how long an input takes."""
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


def the_plan(**fields: Any) -> ops.Plan:
    given: dict[str, Any] = {
        "name": "p", "slots": 4, "symbols": 1, "ops": (), "attach": (), "maps": {},
        "programs": {}, "links": {}, "variables": {}, "layouts": {},
    }  # fmt: skip
    return ops.Plan(**{**given, **fields})


def frozen(*entries: tuple[str, bytes]) -> bytes:
    """Entries as a file, with the right hash."""
    payload = b""
    for tag, body in entries:
        payload += struct.pack("<BI", ord(tag), len(body) // (4 if tag in "tdo" else 1)) + body
    digest = hashlib.sha256(payload).digest()
    return HEADER.pack(MAGIC, VERSION, 0, len(entries), len(payload), digest) + payload


# --- layouts of BTF ---------------------------------------------------------------------------


def test_a_member_without_a_name_that_is_no_struct() -> None:
    writer = BtfWriter("little")
    integer = writer.add_int("int", 4)
    struct_id = writer.add_struct("s", 8, [("", integer, 0), ("a", integer, 32)])
    form = layout(writer.btf(), struct_id)
    assert decode(form, struct.pack("<II", 7, 9)) == {"a": 9}


def test_a_bit_field_without_a_name_whose_type_is_a_struct() -> None:
    writer = BtfWriter("little")
    integer = writer.add_int("int", 4)
    inner = writer.add_struct("inner", 4, [("b", integer, 0)])
    struct_id = writer.add_struct("s", 8, [("", inner, 0, 16), ("a", integer, 32)])
    form = layout(writer.btf(), struct_id)
    assert decode(form, struct.pack("<II", 7, 9)) == {"a": 9}


def test_four_thousand_million_elements_of_no_size() -> None:
    writer = BtfWriter("little")
    empty = writer.add_struct("empty", 0, [])
    integer = writer.add_int("int", 4)
    array = writer.add_array(empty, integer, 0xFFFFFFFF)
    whole = writer.add_struct("s", 4, [("none", array, 0), ("a", integer, 0)])
    with within(60.0):
        assert decode(layout(writer.btf(), whole), b"\5\0\0\0") == {"none": b"", "a": 5}


def test_structs_that_double_thirty_times() -> None:
    writer = BtfWriter("little")
    inner = writer.add_struct("s0", 0, [])
    for number in range(30):
        inner = writer.add_struct(f"s{number + 1}", 0, [("a", inner, 0), ("b", inner, 0)])
    with within(60.0), pytest.raises(FormatError, match="more than 100000 parts"):
        layout(writer.btf(), inner)


def test_a_type_that_many_members_share_is_no_doubling() -> None:
    writer = BtfWriter("little")
    pair = writer.add_struct("pair", 8, [(n, writer.add_int("int", 4), 0) for n in ("a", "b")])
    whole = writer.add_struct("s", 8000, [(f"m{i}", pair, 64 * i) for i in range(1000)])
    assert len(layout(writer.btf(), whole)[2]) == 1000


def test_a_type_without_a_name_in_thousands_of_others() -> None:
    """286 KB of BTF that would be a header of 60 million lines."""
    writer = BtfWriter("little")
    integer = writer.add_int("int", 4)
    whole = writer.add_struct("", 80_000, [("m", integer, 32 * i) for i in range(20_000)])
    for i in range(3000):
        writer.add_typedef(f"t{i}", whole)
    with within(60.0), pytest.raises(FormatError, match="too many"):
        dump(writer.btf(name="x"))


def test_a_bit_field_wider_than_its_type() -> None:
    writer = BtfWriter("little")
    byte = writer.add_int("byte", 1)
    wide = writer.add_struct("s", 8, [("a", byte, 0, 32)])
    with pytest.raises(FormatError, match="has 32 bits, its type 8"):
        layout(writer.btf(), wide)


def test_an_enum_of_a_size_that_no_number_has() -> None:
    writer = BtfWriter("little")
    odd = writer.add_enum("e", [("A", 1)], size=41)
    assert layout(writer.btf(), odd) == ("opaque", 41)


# --- frozen Plans -----------------------------------------------------------------------------


def test_a_file_whose_entries_double_forty_times() -> None:
    entries = [("b", b"x")]
    for number in range(40):
        entries.append(("t", struct.pack("<II", number, number)))
    with within(60.0), pytest.raises(FormatError, match="larger than its file explains"):
        from_bytes(frozen(*entries))


def test_a_large_string_a_hundred_thousand_times() -> None:
    entries = [("b", bytes(1 << 20)), ("t", struct.pack("<I", 0) * 100_000)]
    with within(60.0), pytest.raises(FormatError, match="larger than its file explains"):
        from_bytes(frozen(*entries))


def test_a_tuple_nested_ten_thousand_deep() -> None:
    entries = [("N", b"")]
    for number in range(10_000):
        entries.append(("t", struct.pack("<I", number)))
    with pytest.raises(FormatError, match="nested too deep"):
        from_bytes(frozen(*entries))


def test_operations_refer_forward_neither() -> None:
    with pytest.raises(FormatError, match="refers forward"):
        from_bytes(frozen(("i", bytes(8)), ("o", struct.pack("<3I", 9, 5, 5))))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variables": {"v": ({}, 0, 4, None)}}, "no place in a map"),
        ({"variables": {"v": (("m",), 0, 4, None)}}, "no place in a map"),
        ({"layouts": {"s": ("struct", 4, (("a", 0, "int"),))}}, "has a member"),
        ({"layouts": {"s": ("struct", 4, (("a", 4, INT),))}}, "outside its 4 bytes"),
        ({"layouts": {"s": ("struct", 4, (("", 0, INT),))}}, "without a name"),
        ({"layouts": {"s": ("array", INT, 1 << 31, 0)}}, "array of"),
        ({"layouts": {"s": ("array", INT, 4, 2)}}, "array of"),
        ({"layouts": {"s": ("int", 1 << 20, False)}}, "part of 1048576 bytes"),
        ({"layouts": {"s": ("int", -4, False)}}, "part of -4 bytes"),
        ({"layouts": {"s": ("nothing", 4)}}, "has a part"),
        ({"layouts": {"s": ()}}, "has a part"),
        ({"layouts": {"s": 5}}, "has a part"),
        ({"layouts": {"s": ((), 5)}}, "has a part"),
        ({"layouts": {4: INT}}, "no name"),
        ({"maps": {"m": (0, ("int", 4), None)}}, "map 'm' has a part"),
        # What the kernel would see is the number modulo 2^32, another type than was told.
        (
            {"ops": (ops.MapCreate(dst=0, name="m", type=1 << 32 | 1, key_size=4, value_size=4,
                                   max_entries=1),)},
            "MapCreate.type is 4294967297",
        ),
    ],
)  # fmt: skip
def test_plans_that_were_believed(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        from_bytes(to_bytes(the_plan(**fields)))


def test_real_layouts_are_still_taken() -> None:
    bits = ("struct", 5, (("a", 0, INT, 3, 5), ("b", 4, INT, 0, 8), ("", 0, ("union", 4, ()))))
    forms = {
        "s": bits, "a": ("array", bits, 7, 8), "e": ("enum", 4, True, (("A", -1),)),
        "f": ("float", 8), "p": ("ptr", 8), "o": ("opaque", 16), "n": None,
    }  # fmt: skip
    again = from_bytes(to_bytes(the_plan(layouts=forms)))
    assert again.layouts == forms
    assert json.dumps(explain.to_json(again))


# --- commands ---------------------------------------------------------------------------------


def object_with(code: bytes) -> bytes:
    elf = ElfWriter()
    section = elf.code("xdp", code)
    elf.function("f", section, 0, len(code))
    return elf.build()


def test_disasm_names_the_object_of_half_a_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "half.bpf.o"
    path.write_bytes(object_with(RETURN_0 + insn(0x18)))
    for command in (["disasm"], ["disasm", "--raw"], ["inspect"]):
        assert main([*command, str(path)]) == 1
        said = capsys.readouterr().err
        assert str(path) in said
        assert said.count("\n") == 1


BAD = {
    "empty": b"",
    "text": b"not an object\n",
    "magic": b"\x7fELF",
    "cut": object_with(RETURN_0)[:100],
    "code": object_with(b"\x95" * 7),
    "btf": b"\x9f\xeb\1\0",
    "plan": MAGIC + bytes(60),
}


@pytest.mark.parametrize("command", ["relocate", "inspect", "disasm", "bundle"])
@pytest.mark.parametrize("kind", BAD)
def test_commands_on_malformed_files(
    command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{kind}.bpf.o"
    path.write_bytes(BAD[kind])
    arguments = [command, str(path)]
    if command == "bundle":
        arguments += ["-o", str(tmp_path / "out")]
    if command == "relocate":
        arguments += ["--btf", str(_btf_file(tmp_path))]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pybpf {command}: ")
    assert captured.err.count("\n") == 1
    assert str(path) in captured.err
    assert not (tmp_path / "out").exists()


def _btf_file(folder: Path) -> Path:
    writer = BtfWriter("little")
    writer.add_int("int", 4)
    path = folder / "kernel.btf"
    path.write_bytes(writer.build())
    return path


def test_run_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.plan"
    path.write_bytes(to_bytes(the_plan())[:-1])
    assert main(["run", str(path)]) == 1
    assert f"file {path}: the frozen Plan says" in capsys.readouterr().err


def test_a_terminal_without_the_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    code = RETURN_0 * 40
    load = ops.MapFill(map=0, entries=((bytes(4), code),))
    array = ops.MapCreate(dst=0, name="m", type=2, key_size=4, value_size=640, max_entries=1)
    path.write_bytes(to_bytes(the_plan(ops=(array, load))))
    done = subprocess.run(
        [sys.executable, "-m", "pybpf", "inspect", str(path)], capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"640 bytes b7000000000000009500000000000000\\u2026" in done.stdout


def test_relocate_goes_on_after_a_malformed_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.o", tmp_path / "good.o"
    bad.write_bytes(BAD["cut"])
    good.write_bytes(object_with(RETURN_0))
    files = [str(bad), str(good), str(tmp_path / "missing.o"), str(tmp_path), str(good)]
    assert main(["relocate", "--json", "--btf", str(_btf_file(tmp_path)), *files]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["object"] for line in lines] == files
    assert [line["error"] is None for line in lines] == [False, True, False, False, True]
    assert lines[1]["programs"][0]["insns"] == RETURN_0.hex()


@pytest.mark.parametrize("shorter_first", [True, False])
def test_functions_that_begin_together_and_end_apart(shorter_first: bool) -> None:
    elf = ElfWriter()
    variable = elf.symbol("v", elf.section(".data", bytes(8), flags=3), 0, 8)
    section = elf.code("xdp", RETURN_0 + load() + RETURN_0)
    sizes = {"short": 16, "whole": 48}
    for name in sorted(sizes, reverse=not shorter_first):
        elf.function(name, section, 0, sizes[name])
    elf.relocate(section, 16, variable)
    found = read(elf.build(), name="x")
    refs = {f.name: [(r.insn, r.kind) for r in f.refs] for f in found.functions}
    assert refs == {"short": [], "whole": [(2, "data")]}
    compile(found, Target(), relocate="kernel")


def test_a_load_that_the_end_of_its_function_cuts() -> None:
    elf = ElfWriter()
    variable = elf.symbol("v", elf.section(".data", bytes(8), flags=3), 0, 8)
    section = elf.code("xdp", RETURN_0 + load() + RETURN_0)
    elf.function("short", section, 0, 24)
    elf.relocate(section, 16, variable)
    with pytest.raises(FormatError, match="its end cuts the 64-bit load of 'v'") as raised:
        read(elf.build(), name="x")
    assert raised.value.where["program"] == "short"
    assert raised.value.where["insn"] == 2


def test_a_kernel_configuration_of_two_gigabytes() -> None:
    types = BtfWriter()
    char = types.add_int("char", 1, char=True)
    text = types.add_array(char, char, 1 << 31)
    variable = types.add_var("CONFIG_TEXT", text, 2)
    types.add_datasec(".kconfig", 0, [(variable, 0, 0)])
    elf = ElfWriter()
    elf.section(".BTF", types.build())
    section = elf.code("xdp", load() + RETURN_0)
    elf.function("f", section, 0, 32)
    elf.relocate(section, 0, elf.extern("CONFIG_TEXT"))
    with pytest.raises(FormatError, match="__kconfig externs have 2,147,483,648 bytes"):
        read(elf.build(), name="x")


def test_no_relocations_and_no_symbols() -> None:
    elf = ElfWriter()
    section = elf.code("xdp", load() + RETURN_0)
    elf.relocate(section, 0, elf.extern("gone"))
    data = bytearray(elf.build())
    headers = struct.unpack_from("<Q", data, 40)[0]
    for number in (2, 3):  # .relxdp and .symtab
        struct.pack_into("<Q", data, headers + 64 * number + 32, 0)
    assert read(bytes(data), name="x").functions == ()


def test_jump_tables_of_two_gigabytes_that_the_file_has_not() -> None:
    elf = ElfWriter()
    elf.function("f", elf.code("xdp", RETURN_0), 0, 16)
    elf.section(".jumptables", type=8, size=(1 << 31) - 1)  # SHT_NOBITS
    with pytest.raises(FormatError, match="2147483647 bytes are said to be in it") as raised:
        read(elf.build(), name="x")
    assert raised.value.where["section"] == ".jumptables"


def test_names_that_would_break_the_line() -> None:
    error = FormatError("wrong.", section="a\nb\x1b[2J", program="ü")
    assert str(error) == "section a\\nb\\x1b[2J, program ü: wrong."
