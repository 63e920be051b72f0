# SPDX-License-Identifier: BSD-2-Clause
"""Summaries of real verifier logs (tests/unit/verifier_logs, made by record.py there)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybpf.kernel.verifier_log import explain, summarize

FOLDER = Path(__file__).parent / "verifier_logs"
LOGS = {path.stem: json.loads(path.read_text())["logs"] for path in FOLDER.glob("*.json")}

# case → (start of the reason, instruction, its disassembly) on every kernel that has the case
REASONS = {
    "uninitialised": ("R5 !read_ok", 0, "r0 = r5"),
    "null_deref": ("R0 invalid mem access 'map_value_or_null'", 6, "r0 = *(u32 *)(r0 +0)"),
    "packet_bounds": ("invalid access to packet, off=0 size=1, R2(id=0,off=0,r=0); R2 ", 2,
                      "r0 = *(u8 *)(r2 +0)"),
    "map_value_bounds": (
        "invalid access to map value, value_size=8 off=16 size=8; R0 min value is outside of the "
        "allowed memory range", 7, "r0 = *(u64 *)(r0 +16)"),
    "unbounded_index": ("R0 unbounded memory access, make sure to bounds check any such access", 9,
                        "r0 = *(u8 *)(r0 +0)"),
    "leaked_reference": ("Unreleased reference id=2 alloc_insn=4", 6, "exit"),
    "unknown_helper": ("invalid func unknown#9999", 0, "call unknown#9999"),
    "poisoned_core": ("invalid func unknown#195896080", 0, "call unknown#195896080"),
    "poisoned_kfunc": ("invalid func unknown#2002000003", 0, "call unknown#2002000003"),
    "bad_ctx": ("invalid bpf_context access off=4000 size=8", 0, "r0 = *(u64 *)(r1 +4000)"),
    "unreachable": ("unreachable insn 1", None, None),
    "falls_off": ("last insn is not an exit or jmp", None, None),
    "bad_jump": ("jump out of range from insn 0 to 101", None, None),
    "stack_bounds": ("invalid write to stack R10 off=-520 size=8", 0, "*(u64 *)(r10 -520) = 1"),
    "scalar_as_pointer": ("R1 invalid mem access 'scalar'", 1, "r0 = *(u64 *)(r1 +0)"),
    "helper_arg": ("R1 type=scalar expected=map_ptr", 1, "call bpf_map_lookup_elem#1"),
    "too_complex": ("The sequence of 8193 jumps is too complex", 131, "if r0 >= 0x5 goto pc+1"),
    "with_source": ("R0 invalid mem access 'map_value_or_null'", 6, "r0 = *(u32 *)(r0 +0)"),
    "division_by_zero": ("div by zero", 1, "r0 /= 0"),
    "shift_too_far": ("invalid shift 64", 1, "r0 <<= 64"),
    "no_opcode": ("unknown opcode 8f", None, None),
    "frame_pointer": ("frame pointer is read only", 0, "r10 = 1"),
    "no_register": ("R12 is invalid", 0, "r12 = 1"),
    "endless": ("infinite loop detected at insn 1", 1, "if r0 == 0x0 goto pc-1"),
    "pointer_arithmetic": ("R1 pointer arithmetic with *= operator prohibited", 0, "r1 *= 2"),
    "misaligned": ("misaligned stack access off 0+0+-13 size 8", 0, "*(u64 *)(r10 -13) = 1"),
    "released_twice": ("R1 type=scalar expected=ringbuf_mem", 12, "call bpf_ringbuf_submit#132"),
    "helper_not_here": (
        "program of this type cannot use helper bpf_probe_write_user#36", 0,
        "call bpf_probe_write_user#36"),
    "needs_gpl": (
        "cannot call GPL-restricted function from non-GPL compatible program", 0,
        "call bpf_trace_printk#6"),
    "deep_stack": ("combined stack size of 2 calls is 608. Too large", None, None),
    "half_constant": ("invalid bpf_ld_imm64 insn", None, None),
    "no_map": ("fd 9999 is not pointing to valid bpf_map", None, None),
    "into_constant": ("jump into the middle of ldimm64 insn 2", None, None),
    "above_stack": ("invalid write to stack R10 off=0 size=8", 0, "*(u64 *)(r10 +0) = 1"),
    "atomic_on_context": (
        "BPF_ATOMIC stores into R1 ctx is not allowed", 1, "lock *(u64 *)(r1 +8) += r2"),
    "recursion": ("the call stack of 9 frames is too deep", 2, "call pc-1"),
    "lsm_return": ("At program exit the register R0 has smin=1 smax=1 should have been in "
                   "[-4095, 0]", 1, "exit"),
    "lsm_sleepable": ("bpf_lsm_task_kill is not sleepable", None, None),
    "lsm_inside_struct": ("access beyond struct spinlock at off 0 size 8", 1,
                          "r2 = *(u64 *)(r1 +0)"),
    "lsm_nullable": ("R1 invalid mem access 'trusted_ptr_or_null_'", 1, "r0 = *(u64 *)(r1 +32)"),
}  # fmt: skip


def test_there_are_logs_of_three_releases() -> None:
    assert sorted(LOGS) == ["6.12.107", "6.18", "7.3.4"]
    assert len(LOGS["7.3.4"]) == 23
    assert len(LOGS["6.18"]) >= 37
    assert len({case for release in LOGS for case in LOGS[release]}) >= 40


@pytest.mark.parametrize(
    ("release", "case"), [(r, c) for r in sorted(LOGS) for c in sorted(LOGS[r]) if c in REASONS]
)
def test_the_reason_and_its_place(release: str, case: str) -> None:
    found = explain(LOGS[release][case][1])
    reason, insn, text = REASONS[case]
    assert found.reason is not None
    assert found.reason.startswith(reason)
    if release == "7.3.4" and case in ("unreachable", "falls_off", "bad_jump"):
        assert found.insn in (0, 1)  # the structured part knows it
    else:
        assert (found.insn, found.text) == (insn, text)


@pytest.mark.parametrize("release", sorted(LOGS))
def test_no_summary_carries_statistics_or_state(release: str) -> None:
    for case, (_, log) in LOGS[release].items():
        text = summarize(log)
        assert "processed" not in text, case
        assert "\n" not in text, case
        assert "R10=fp0" not in text, case
        assert len(text) < 900, case


def test_a_source_line_is_named() -> None:
    for release in LOGS:
        found = explain(LOGS[release]["with_source"][1])
        assert (found.source, found.code) == ("count.bpf.c:32", "return *value;")
    assert summarize(LOGS["6.18"]["with_source"][1]) == (
        "R0 invalid mem access 'map_value_or_null'. At instruction 6 (r0 = *(u32 *)(r0 +0)), "
        "count.bpf.c:32: return *value;."
    )


def test_the_structured_part_of_7_3() -> None:
    found = explain(LOGS["7.3.4"]["lsm_nullable"][1])
    assert found.detail == (
        "R1 may be NULL here (a nullable kernel object pointer). The program could dereference "
        "NULL on this path, so the verifier cannot prove this access is safe."
    )
    assert found.suggestion == (
        "Add a NULL check before the access and dereference the pointer only on the non-NULL path."
    )
    assert "The kernel suggests: Add a NULL check" in summarize(LOGS["7.3.4"]["lsm_nullable"][1])


def test_poisoned_calls_are_explained() -> None:
    for release in LOGS:
        assert "CO-RE relocation has no match" in summarize(LOGS[release]["poisoned_core"][1])
        assert "weak kfunc" in summarize(LOGS[release]["poisoned_kfunc"][1])
        assert "marks" not in summarize(LOGS[release]["unknown_helper"][1])


def test_source_lines_of_old_kernels() -> None:
    """Before 6.8 the source line has no file name."""
    log = "; return *value;\n6: (61) r0 = *(u32 *)(r0 +0)\nR0 invalid mem access 'inv'\n"
    assert summarize(log) == (
        "R0 invalid mem access 'inv'. At instruction 6 (r0 = *(u32 *)(r0 +0)), "
        "source line return *value;."
    )


def test_an_empty_log() -> None:
    assert summarize("") == "The verifier gave no reason."
    assert summarize("processed 1 insns (limit 1)\n") == "The verifier gave no reason."
