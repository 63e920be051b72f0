# SPDX-License-Identifier: BSD-2-Clause
"""restrict pins: names and records of the header, the Plan, refusals before the kernel is asked."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import pytest

from pybpf import elf
from restrict import abi, cli, pins, pins_status
from restrict.errors import RestrictError
from restrict.events import Event

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = (ROOT / "bpf/include/pins.h").read_text()
OBJECT = ROOT / "bpf/objects/pins.bpf.o"
PLAN = str(ROOT / "bpf/objects/pins.plan")
STATUS = """armed 1
audit 0
strict 1
filesystem 0:41
version 1
generation 0
kept 2
events_map 7
owner 1 start_ticks 0
counter unlink allowed 1 denied 2 audited 0 dropped 0
guard_map 9
guard_link 12
guard_link 11
registered_link 8
registered_link 7
"""


def _names(enum: str, prefix: str, first: int = 0) -> tuple[str, ...]:
    body = re.search(rf"enum {enum} {{(.*?)}};", HEADER, re.S)
    assert body is not None
    found = re.findall(rf"{prefix}(\w+) = (\d+)", body[1])
    assert [int(number) for _, number in found] == list(range(first, len(found) + first))
    return tuple(name.lower() for name, _ in found)


def test_names_are_those_of_the_header() -> None:
    assert _names("pins_operation", "PINS_OP_") == abi.PINS_OPERATIONS
    assert _names("pins_reason", "PINS_REASON_") == abi.PINS_REASONS
    assert _names("pins_kind", "PINS_KIND_", 1) == abi.PINS_KINDS
    assert abi.POLICIES[2][0] == "pins"


def test_records_are_those_of_the_object() -> None:
    spec = elf.read(OBJECT)
    assert spec.maps["pins_ids"].max_entries == 4096
    plan = pins.load_plan(PLAN)
    assert plan.variables["guarded"][2] == pins.MOST_FILESYSTEMS * abi.PINS_FILESYSTEM.size


def test_the_plan_has_the_policy() -> None:
    plan = pins.load_plan(PLAN)
    assert {"pins_ids", "counters", "events", ".bss"} <= set(plan.maps)
    assert set(pins._GLOBALS) <= set(plan.variables)
    assert {pins.STATUS, pins.SYSCTL} <= set(plan.programs)
    # That of the cgroup is attached by other means.
    assert len(plan.attach) == len(plan.programs) - 1


def test_no_probe_read() -> None:
    """lockdown=confidentiality forbids these helpers."""
    forbidden = {4, 45, 67, 112, 113, 114, 115, 148}
    spec = elf.read(OBJECT)
    called = set()
    for function in spec.functions:
        for i in range(0, len(function.insns), 8):
            code, registers, _, imm = struct.unpack_from("<BBhi", function.insns, i)
            if code == 0x85 and registers >> 4 == 0:
                called.add(imm)
    assert 181 in called  # bpf_loop
    assert not called & forbidden


def test_status() -> None:
    found = pins_status.PinsStatus(STATUS)
    assert found.filesystems == [41]
    assert found.registered == {"map": [], "program": [], "link": [7, 8]}
    assert found.armed
    assert found.strict
    assert (found.owner, found.owner_alive) == (1, True)
    assert found.guard == {"map": [9], "program": [], "link": [12, 11]}
    text = found.text()
    assert "owner: process 1" in text
    assert "unlink: 1 allowed, 2 denied" in text
    assert "strict: nobody else" in text
    told = json.loads(json.dumps(found.as_dict()))
    assert (told["mode"], told["strict"]) == ("deny", True)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("registered_btf 3", "registered_btf 3"),
        ("registered_map x", "registered_map x"),
        ("filesystem 41", "filesystem 41"),
    ],
)
def test_status_out_of_form_is_refused(line: str, error: str) -> None:
    with pytest.raises(RestrictError, match=f"the line '{error}'"):
        pins_status.PinsStatus(STATUS + line + "\n")


def test_events_have_the_names_of_their_policy() -> None:
    record = bytearray(abi.EVENT.size)
    struct.pack_into("=3I", record, 8, 6, 4, 1)
    struct.pack_into("=I", record, abi.EVENT.size - 4, 2)
    event = Event(bytes(record))
    assert (event.policy, event.operation, event.reason) == ("pins", "umount", "propagation")


@pytest.mark.parametrize(("kind", "ident"), [("btf", 1), ("map", 0), ("link", 1 << 32)])
def test_ids_that_cannot_be(kind: str, ident: int) -> None:
    with pytest.raises(RestrictError):
        pins.Pins._key(kind, ident)


def test_keys_are_kind_and_id() -> None:
    assert pins.Pins._key("link", 5) == struct.pack("=II", 5, 3)


@pytest.mark.skipif(os.getuid() != 0, reason="the folders must be root's")
def test_a_directory_with_something_in_it_is_not_covered(tmp_path: Path) -> None:
    folder = tmp_path / "restrict"
    folder.mkdir(mode=0o711)
    (folder / "pin").touch()
    with pytest.raises(RestrictError, match="something in it"):
        pins.filesystem(str(folder))


def test_nothing_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "none")
    assert pins_status.read(path) is None
    assert pins.open_pinned(path) is None
    assert cli.main(["pins", "status", "--path", path]) == 1
    assert cli.main(["pins", "uninstall", "--path", path]) == 1
    assert cli.main(["pins", "list", "--path", path]) == 1
    assert "not installed" in capsys.readouterr().err
