# SPDX-License-Identifier: BSD-2-Clause
"""Which kernel an object needs, and what `inspect` tells of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybpf.cli import main
from pybpf.compiler import needs
from pybpf.elf.reader import read
from pybpf.kernel.features import MAP_TYPE_SINCE, PROGRAM_TYPE_SINCE
from pybpf.sys.abi_helpers import HELPER_NAMES

OBJECTS = Path(__file__).parents[1] / "objects"


# From the kernel's history, each with the commit that brought it.
@pytest.mark.parametrize(
    ("helper", "release"),
    [
        ("map_delete_elem", "3.19"),  # d0003ec01c66
        ("get_prandom_u32", "4.1"),  # 03e69b508b6f
        ("get_current_comm", "4.2"),  # ffeedafbf023
        ("perf_event_output", "4.4"),  # a43eec304259
        ("probe_write_user", "4.8"),  # 96ae52279594
        ("set_hash_invalid", "4.9"),  # 7a4b28c6cc9f
        ("xdp_adjust_head", "4.10"),  # 17bedab27231
        ("get_current_cgroup_id", "4.18"),  # bf6fa2c893c5
        ("skb_ancestor_cgroup_id", "4.19"),  # 7723628101aa
        ("msg_push_data", "4.20"),  # 6fff607e2f14
        ("sk_storage_delete", "5.2"),  # 6ac99e8f23d4
        ("probe_read_kernel_str", "5.5"),  # 6ae08ae3dea2
        ("ringbuf_output", "5.8"),  # 457f44363a88
        ("get_task_stack", "5.9"),  # fa28dcb82a38
        ("redirect_peer", "5.10"),  # 9aa1206e8f48
        ("sock_from_file", "5.11"),  # 4f19cab76136
        ("snprintf", "5.13"),  # 7b15523a989b
        ("btf_find_by_name_kind", "5.14"),  # 3d78417b60fb
        ("task_pt_regs", "5.15"),  # dd6e10fbd9fb
        ("loop", "5.17"),  # e6f2dd0f8067
        ("ima_file_hash", "5.18"),  # 174b16946e39
        ("dynptr_data", "5.19"),  # 34d4ef5775f7
        ("user_ringbuf_drain", "6.1"),  # 205715673844
        ("cgrp_storage_delete", "6.2"),  # c4bcfb38a95e
    ],
)
def test_helpers(helper: str, release: str) -> None:
    assert needs.helper_since(HELPER_NAMES.index(helper)) == release


def test_every_helper_has_a_release_and_no_other_number() -> None:
    found = [needs.helper_since(n) for n in range(1, len(HELPER_NAMES))]
    assert None not in found
    order = [tuple(map(int, (text or "").split("."))) for text in found]
    assert order == sorted(order)
    assert needs.helper_since(0) is None
    assert needs.helper_since(len(HELPER_NAMES)) is None


def test_types_have_releases() -> None:
    assert set(range(1, 34)) <= set(MAP_TYPE_SINCE)
    assert set(range(1, 33)) <= set(PROGRAM_TYPE_SINCE)


def test_an_object() -> None:
    spec = read(OBJECTS / "features.bpf.o")
    first = spec.programs["first"]
    asked = needs.Needs(spec)
    found = asked.program(first)
    assert needs.least(found) == "5.17"
    assert needs.Need("5.17", "helper bpf_loop") in found
    assert needs.Need("5.13", "callbacks") in found
    assert needs.Need("5.2", "global variables") in found
    used = asked.used_by(spec.programs["tracing"])
    assert used.kfuncs[0] == ("no_such_kfunc", True)
    # a helper of a subprogram counts
    assert HELPER_NAMES.index("map_push_elem") in asked.used_by(first).helpers


def test_attach_types() -> None:
    spec = read(OBJECTS / "attach.bpf.o")
    asked = needs.Needs(spec)
    found = {name: needs.least(asked.program(p)) for name, p in spec.programs.items()}
    assert found["fsession"] == "7.0"
    assert found["fentry_multi"] == "7.1"
    assert found["uprobe_session"] == "6.13"


def test_both_byte_orders_need_the_same() -> None:
    little, big = (read(OBJECTS / f"features{end}.bpf.o") for end in ("", "-be"))
    one, other = needs.Needs(little), needs.Needs(big)
    for name, program in little.programs.items():
        assert one.program(program) == other.program(big.programs[name])


def test_least_compares_numbers() -> None:
    versions = ("5.9", "5.10", None)
    assert needs.least(needs.Need(v, "") for v in versions) == "5.10"
    assert needs.least([]) is None


def test_inspect_tells_sections_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(OBJECTS / "features.bpf.o"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["needs"] == "5.17"
    sections = {s["name"]: s for s in found["sections"]}
    assert sections[".text"]["size"] == 320
    assert sections[".maps"]["relocations"] == 3
    programs = {p["name"]: p for p in found["programs"]}
    assert "bpf_tail_call" in programs["first"]["helpers"]
    assert {"name": "bpf_rcu_read_lock", "weak": False} in programs["tracing"]["kfuncs"]


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="no kernel BTF")
def test_inspect_tells_relocations(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(OBJECTS / "features.bpf.o")
    assert main(["inspect", path, "--relocations", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["relocations"]
    fields = [r for r in rows if r.get("kind") == "byte_off" and not r["poisoned"]]
    assert fields
    for row in fields:
        assert "features.bpf.c:" in row["source"]
        assert " -> " in row["decision"]
    ring = [r for r in rows if r.get("kind") == "map" and r["of"] == "ring"]
    assert ring[0]["before"] != ring[0]["after"]
    assert main(["inspect", path, "--relocations"]) == 0
    assert "relocation " in capsys.readouterr().out
