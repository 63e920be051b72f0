# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf prog|map|link|btf|features`` on what is really in the kernel."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pybpf
from pybpf.btf.model import Btf
from pybpf.cli import main

FEATURES = Path(__file__).parent.parent / "objects/features.bpf.o"

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(sys.byteorder != "little", reason="the objects are little-endian"),
]


LIVE = FEATURES.parent / "live.bpf.o"


@pytest.fixture
def live() -> Iterator[pybpf.Object]:
    spec = pybpf.read(FEATURES).with_map("pinned", pin=0)
    with pybpf.load(spec) as found:
        yield found.attach()


Output = pytest.CaptureFixture[str]


def lines(capsys: Output, *arguments: str) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_programs(live: pybpf.Object, capsys: Output) -> None:
    ident = live.programs["first"].id
    (found,) = [p for p in lines(capsys, "prog", "list") if p["id"] == ident]
    assert (found["name"], found["type"]) == ("first", "raw_tracepoint")
    assert set(found["map_ids"]) <= {m.id for m in live.maps.values()}
    assert lines(capsys, "prog", "show", str(ident)) == [found]
    assert main(["prog", "dump", str(ident)]) == 0
    out = capsys.readouterr().out
    assert "call bpf_loop" in out or "goto pc" in out
    assert "exit" in out


def test_maps(live: pybpf.Object, capsys: Output) -> None:
    live.maps["inner_a"][5] = 500
    ident = live.maps["inner_a"].id
    assert lines(capsys, "map", "dump", str(ident)) == [{"key": 5, "value": 500}]
    (shown,) = lines(capsys, "map", "show", str(ident))
    assert (shown["type"], shown["max_entries"]) == ("hash", 8)
    assert ident in [m["id"] for m in lines(capsys, "map", "list")]
    assert main(["map", "dump", str(ident)]) == 0
    assert capsys.readouterr().out == "5: 500\n"


def test_maps_that_cannot_be_listed(live: pybpf.Object, capsys: Output) -> None:
    for name in ("ring", "bloom"):
        ident = str(live.maps[name].id)
        assert main(["map", "dump", ident]) == 2
        assert f"map {ident}: its elements have no keys" in capsys.readouterr().err


def test_names(live: pybpf.Object, capsys: Output) -> None:
    """An object by its name, if it is the only one of that name."""
    program = live.programs["first"]
    others = [p["id"] for p in lines(capsys, "prog", "list") if p.get("name") == "first"]
    if others == [program.id]:
        assert lines(capsys, "prog", "show", "first")[0]["id"] == program.id
    maps_only = list(pybpf.read(LIVE).programs)
    with pybpf.load(LIVE, disable=maps_only) as more:
        name = next(iter(more.maps.values())).info()["name"]
        with pybpf.load(LIVE, disable=maps_only):
            assert main(["map", "show", name]) == 2
            assert "Give one of the ids" in capsys.readouterr().err
    assert main(["map", "show", "no_such_map"]) == 2
    assert "no map of the name 'no_such_map'" in capsys.readouterr().err


def test_a_data_section_is_shown_by_its_variables(live: pybpf.Object, capsys: Output) -> None:
    ident = live.maps[".data"].id
    (found,) = lines(capsys, "map", "dump", str(ident))
    assert found["value"]["start"] == live.vars["start"] == -5


def test_calls_and_maps_of_a_program_have_names(live: pybpf.Object, capsys: Output) -> None:
    """What the kernel rewrote is named again, as bpftool does."""
    program = live.programs["first"]
    dumped = [row["insn"] for row in lines(capsys, "prog", "dump", str(program.id))]
    assert any(f"map[id:{ident}]" in line for line in dumped for ident in program.map_ids())
    with open("/proc/kallsyms") as file:
        hidden = "__bpf_call_base" not in file.read()
    assert hidden or not any("unknown#" in line for line in dumped)


def test_merging_types(tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "merged.btf"
    objects = [str(FEATURES), str(LIVE)]
    assert main(["btf", "merge", *objects, str(FEATURES), "-o", str(out)]) == 0
    merged = Btf.open(str(out))
    assert len(merged.find("pair")) == 1
    assert main(["btf", "dump", str(out), "--format", "c"]) == 0
    assert "struct pair {" in capsys.readouterr().out


def test_the_types_that_objects_need(tmp_path: Path, capsys: Output) -> None:
    """A few kilobytes of vmlinux give the same instructions as all of it."""
    out = tmp_path / "min.btf"
    assert main(["btf", "minimal", str(FEATURES), "-o", str(out)]) == 0
    assert out.stat().st_size < 20_000
    results = []
    for btf in (str(out), "/sys/kernel/btf/vmlinux"):
        assert main(["relocate", str(FEATURES), "--btf", btf, "--json"]) in (0, 1)
        (row,) = capsys.readouterr().out.splitlines()
        results.append({p["name"]: p["insns"] for p in json.loads(row)["programs"]})
    assert results[0]["first"] == results[1]["first"] != ""


def test_types_as_json(capsys: Output) -> None:
    rows = lines(capsys, "btf", "dump", str(FEATURES))
    by_name = {row["name"]: row for row in rows if row["kind"].lower() == "struct"}
    assert [m["name"] for m in by_name["pair"]["members"]] == ["left", "right"]
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert main(["btf", "dump", str(FEATURES), "--json", "--format", "c"]) == 2
    assert "do not go together" in capsys.readouterr().err


def test_links(live: pybpf.Object, capsys: Output) -> None:
    ident = live.links["tracing"].id
    (found,) = [k for k in lines(capsys, "link", "list") if k["id"] == ident]
    assert found["type"] == "raw_tracepoint"  # what the kernel makes of tp_btf
    assert found["prog_id"] == live.programs["tracing"].id


def test_btf(live: pybpf.Object, capsys: Output) -> None:
    assert "vmlinux" in [b["name"] for b in lines(capsys, "btf", "list")]
    assert main(["btf", "dump", "vmlinux", "--type", "bpf_map_info"]) == 0
    assert "STRUCT 'bpf_map_info'" in capsys.readouterr().out
    ident = live.maps["inner_a"].info()["btf_id"]
    assert main(["btf", "dump", str(ident), "--type", "inner_map"]) == 0
    assert "'max_entries'" in capsys.readouterr().out
    assert main(["btf", "dump", str(FEATURES), "--format", "c", "--type", "pair"]) == 0
    assert "struct pair {" in capsys.readouterr().out
    assert main(["btf", "dump", "vmlinux", "--type", "no_such_type_at_all"]) == 2


def test_absent_ids(capsys: Output) -> None:
    assert main(["prog", "show", "4000000000"]) == 1
    assert main(["map", "show", "/sys/fs/bpf/none"]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_features(capsys: Output) -> None:
    (found,) = lines(capsys, "features")
    assert found["map_types"]["hash"] is True
    assert found["program_types"]["socket_filter"] is True
    assert found["features"]["ringbuf"] is True
