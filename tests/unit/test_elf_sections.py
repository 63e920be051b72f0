# SPDX-License-Identifier: BSD-2-Clause
"""SEC() names."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import types
from pathlib import Path

import pytest

from pybpf.elf import sections
from pybpf.elf.section_table import SECTION_TABLE
from pybpf.sys import abi, abi_names

TOOL = Path(__file__).parent.parent.parent / "tools" / "gen_sections"


@pytest.mark.parametrize(
    ("section", "program", "attach", "flags", "target"),
    [
        ("lsm/bprm_check_security", "lsm", "lsm_mac", 0, "bprm_check_security"),
        ("lsm.s/file_open", "lsm", "lsm_mac", 16, "file_open"),
        ("lsm_cgroup/socket_bind", "lsm", "lsm_cgroup", 0, "socket_bind"),
        ("fentry.s/x", "tracing", "trace_fentry", 16, "x"),
        ("fmod_ret/x", "tracing", "modify_return", 0, "x"),
        ("iter/bpf_map_elem", "tracing", "trace_iter", 0, "bpf_map_elem"),
        ("xdp", "xdp", "xdp", 0, None),
        ("xdp.frags/devmap", "xdp", "xdp_devmap", 32, None),
        ("xdp/cpumap", "xdp", "xdp_cpumap", 0, None),
        ("uprobe//usr/bin/x:f+4", "kprobe", None, 0, "/usr/bin/x:f+4"),
        ("uprobe.multi.s/x", "kprobe", "trace_uprobe_multi", 16, "x"),
        ("tcx/ingress", "sched_cls", "tcx_ingress", 0, None),
        ("cgroup/connect_unix", "cgroup_sock_addr", "cgroup_unix_connect", 0, None),
        ("cgroup/sysctl", "cgroup_sysctl", "cgroup_sysctl", 0, None),
        ("syscall", "syscall", None, 16, None),
        ("struct_ops.s/x", "struct_ops", None, 16, "x"),
        ("raw_tp.w/x", "raw_tracepoint_writable", None, 0, "x"),
        ("netkit/peer", "sched_cls", "netkit_peer", 0, None),
    ],
)
def test_known(
    section: str, program: str, attach: str | None, flags: int, target: str | None
) -> None:
    found = sections.find(section)
    assert found is not None
    definition, got = found
    assert abi_names.PROG_TYPE_NAMES[definition.type] == program
    if attach is None:
        assert definition.attach_type == 0
    else:
        assert abi_names.ATTACH_TYPE_NAMES[definition.attach_type] == attach
    assert definition.flags == flags
    assert got == target


@pytest.mark.parametrize(
    "section", ["", "lsmx", "xdp/other", "cgroup/none", "filter", "lsm.x/f", "tc/", "/"]
)
def test_unknown(section: str) -> None:
    assert sections.find(section) is None


def test_every_pattern_finds_itself() -> None:
    for definition in sections.SECTIONS:
        found = sections.find(definition.prefix)
        assert found == (definition, None)
        if definition.takes_target:
            assert sections.find(definition.prefix + "/a/b") == (definition, "a/b")
        else:
            other = sections.find(definition.prefix + "/zzz")
            assert other is None or other[0] is not definition
    assert len(sections.SECTIONS) > 105


def test_nearest() -> None:
    assert sections.nearest("lsm_s/file_open")[0] in ("lsm", "lsm.s")
    assert "kprobe" in sections.nearest("kprob/x")


def test_question_mark() -> None:
    assert sections.split("?lsm/x") == ("lsm/x", False)
    assert sections.split("lsm/x") == ("lsm/x", True)


def _tool() -> types.ModuleType:
    loader = importlib.machinery.SourceFileLoader("gen_sections", str(TOOL))
    spec = importlib.util.spec_from_loader("gen_sections", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_table_is_what_the_tool_writes() -> None:
    """Nobody edits it: written out again from its own rows it is the same file."""
    tool = _tool()
    text = tool.TABLE.read_text()
    version = text.split("libbpf of Linux ", 1)[1].split(";", 1)[0]
    assert tool.render(list(SECTION_TABLE), version) == text


def test_no_drift_from_libbpf() -> None:
    """Runs where tools/gen_sections has left what it read of libbpf.c in the cache."""
    tool = _tool()
    if not tool.KEPT.exists():
        pytest.skip("no table of libbpf in the cache (tools/gen_sections)")
    version, _, body = tool.KEPT.read_text().partition("\n")
    assert tool.render(tool.rows(body), version) == tool.TABLE.read_text()


def test_what_the_tool_does_not_understand() -> None:
    tool = _tool()
    row = 'SEC_DEF("a+", KPROBE, BPF_TRACE_KPROBE_MULTI, SEC_SLEEPABLE, attach_kprobe_multi),'
    assert tool.rows(row) == [("a+", "KPROBE", "TRACE_KPROBE_MULTI", "sm")]
    with pytest.raises(tool.GenError, match="unknown flag SEC_NEW"):
        tool.rows('SEC_DEF("a+", KPROBE, 0, SEC_NEW)')
    with pytest.raises(tool.GenError, match="not understood"):
        tool.rows('SEC_DEF("a+", KPROBE, 0)')
    with pytest.raises(tool.GenError, match="no table"):
        tool.definitions("static int x;")


def test_every_attach_type_has_a_section_or_a_reason() -> None:
    """A new one in the UAPI shows here."""
    without = {"perf_event", "struct_ops"}  # numbers for links only
    named = {d.attach_type for d in sections.SECTIONS} | {abi.BPF_CGROUP_INET_INGRESS}
    missing = {name for number, name in abi_names.ATTACH_TYPE_NAMES.items() if number not in named}
    assert missing == without
    programs = {d.type for d in sections.SECTIONS}
    assert {n for k, n in abi_names.PROG_TYPE_NAMES.items() if k not in programs} == {"unspec"}
