# SPDX-License-Identifier: BSD-2-Clause
"""Record real verifier logs: load programs that the running kernel refuses, print their logs.

    python3 tests/unit/verifier_logs/record.py > tests/unit/verifier_logs/RELEASE.json
    tools/vm run --lane 7.3 tests/unit/verifier_logs/record.py | grep '^{' > …

One line of JSON: {"release": uname -r, "logs": {case: [errno, log]}}. Long logs lose their middle.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any

from pybpf.errors import KernelError, VerifierError
from pybpf.kernel import btf_lookup
from pybpf.kernel.program import load_fd
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer

SOCKET, XDP, TRACING, LSM = 1, 6, 26, 29
TP = {"expected_attach_type": abi.BPF_TRACE_RAW_TP}
TP_TARGET = ("btf_trace_sched_process_exit", abi.BTF_KIND_TYPEDEF)
MAC = {"expected_attach_type": abi.BPF_LSM_MAC}


def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def mov(dst: int, imm: int = 0) -> bytes:
    return insn(0xB7, dst, imm=imm)


def copy(dst: int, src: int) -> bytes:
    return insn(0xBF, dst, src)


def add(dst: int, imm: int) -> bytes:
    return insn(0x07, dst, imm=imm)


def load(size: int, dst: int, src: int, off: int) -> bytes:
    return insn({1: 0x71, 4: 0x61, 8: 0x79}[size], dst, src, off)


def call(helper: int) -> bytes:
    return insn(0x85, imm=helper)


def map_fd(dst: int, fd: int) -> bytes:
    return insn(0x18, dst, abi.BPF_PSEUDO_MAP_FD, 0, fd) + insn(0)


EXIT = insn(0x95)
GOTO = 0x05


def lookup(fd: int) -> bytes:
    """r0 = bpf_map_lookup_elem(map, &(u32){0})"""
    return map_fd(1, fd) + copy(2, 10) + add(2, -4) + insn(0x62, 10, 0, -4, 0) + call(1)


def cases(array: int, table: int, ring: int) -> dict[str, tuple[Any, ...]]:
    """name → (program type, instructions, fields, (BTF name, kind) of the target or None)"""
    skip = insn(0x15, 0, 0, 1)  # if r0 == 0 goto +1
    loop = (call(7) + add(6, 1) + insn(0x35, 0, 0, 1, 5) + add(6, 2)) * 40
    return {
        "uninitialised": (SOCKET, copy(0, 5) + EXIT, {}, None),
        "null_deref": (SOCKET, lookup(table) + load(4, 0, 0, 0) + EXIT, {}, None),
        "packet_bounds": (
            XDP, load(4, 2, 1, 0) + load(4, 3, 1, 4) + load(1, 0, 2, 0) + EXIT, {}, None),
        "map_value_bounds": (
            SOCKET, lookup(array) + skip + load(8, 0, 0, 16) + mov(0) + EXIT, {}, None),
        "unbounded_index": (
            SOCKET, load(4, 6, 1, 0) + lookup(array) + insn(0x15, 0, 0, 2) + insn(0x0F, 0, 6)
            + load(1, 0, 0, 0) + mov(0) + EXIT, {}, None),
        "leaked_reference": (
            SOCKET, map_fd(1, ring) + mov(2, 16) + mov(3) + call(131) + mov(0) + EXIT, {}, None),
        "unknown_helper": (SOCKET, call(9999) + mov(0) + EXIT, {}, None),
        "poisoned_core": (SOCKET, call(0xBAD2310) + mov(0) + EXIT, {}, None),
        "poisoned_kfunc": (SOCKET, call(2002000003) + mov(0) + EXIT, {}, None),
        "return_range": (TRACING, mov(0, 7) + EXIT, TP, TP_TARGET),
        "bad_ctx": (SOCKET, load(8, 0, 1, 4000) + EXIT, {}, None),
        "ctx_type": (TRACING, load(8, 0, 1, 800) + EXIT, TP, TP_TARGET),
        "unreachable": (SOCKET, insn(GOTO, off=1) + mov(0) + mov(0) + EXIT, {}, None),
        "falls_off": (SOCKET, mov(0, 1), {}, None),
        "bad_jump": (SOCKET, insn(GOTO, off=100) + EXIT, {}, None),
        "stack_bounds": (SOCKET, insn(0x7A, 10, 0, -520, 1) + mov(0) + EXIT, {}, None),
        "scalar_as_pointer": (SOCKET, mov(1, 5) + load(8, 0, 1, 0) + EXIT, {}, None),
        "helper_arg": (SOCKET, mov(1) + call(1) + EXIT, {}, None),
        "too_complex": (
            SOCKET, mov(6) + loop + insn(0xA5, 6, 0, -161, 0x7FFFFFFF) + mov(0) + EXIT, {}, None),
        "with_source": (SOCKET, lookup(table) + load(4, 0, 0, 0) + EXIT, {"source": 1}, None),
        "division_by_zero": (SOCKET, mov(0, 4) + insn(0x37, 0, imm=0) + EXIT, {}, None),
        "shift_too_far": (SOCKET, mov(0, 4) + insn(0x67, 0, imm=64) + EXIT, {}, None),
        "no_opcode": (SOCKET, mov(0) + insn(0x8F) + EXIT, {}, None),
        "frame_pointer": (SOCKET, mov(10, 1) + mov(0) + EXIT, {}, None),
        "no_register": (SOCKET, mov(12, 1) + mov(0) + EXIT, {}, None),
        "endless": (SOCKET, mov(0) + insn(0x15, 0, 0, -1, 0) + EXIT, {}, None),
        "pointer_arithmetic": (SOCKET, insn(0x27, 1, imm=2) + mov(0) + EXIT, {}, None),
        "misaligned": (
            SOCKET, insn(0x7A, 10, 0, -13, 1) + mov(0) + EXIT,
            {"prog_flags": abi.BPF_F_STRICT_ALIGNMENT}, None),
        "released_twice": (
            SOCKET, map_fd(1, ring) + mov(2, 16) + mov(3) + call(131) + insn(0x15, 0, 0, 7)
            + copy(6, 0) + copy(1, 6) + mov(2) + call(132) + copy(1, 6) + mov(2) + call(132)
            + mov(0) + EXIT, {}, None),
        "helper_not_here": (SOCKET, call(36) + mov(0) + EXIT, {}, None),
        "needs_gpl": (SOCKET, call(6) + mov(0) + EXIT, {"licence": b"Proprietary\0"}, None),
        "deep_stack": (
            SOCKET, insn(0x7A, 10, 0, -304, 1) + insn(0x85, 0, 1, 0, 1) + EXIT
            + insn(0x7A, 10, 0, -304, 1) + mov(0) + EXIT, {}, None),
        "half_constant": (SOCKET, insn(0x18, 1, imm=5) + mov(0) + EXIT, {}, None),
        "no_map": (SOCKET, map_fd(1, 9999) + mov(0) + EXIT, {}, None),
        "into_constant": (
            SOCKET, mov(0) + insn(0x15, 0, 0, 1, 0) + insn(0x18, 1, imm=5) + insn(0) + EXIT,
            {}, None),
        "above_stack": (SOCKET, insn(0x7A, 10, 0, 0, 1) + mov(0) + EXIT, {}, None),
        "atomic_on_context": (
            SOCKET, mov(2, 1) + insn(0xDB, 1, 2, 8, 0) + mov(0) + EXIT, {}, None),
        "recursion": (SOCKET, insn(0x85, 0, 1, 0, 1) + EXIT + insn(0x85, 0, 1, 0, -1) + EXIT,
                      {}, None),
        "lsm_return": (LSM, mov(0, 1) + EXIT, MAC, ("bpf_lsm_bpf", 12)),
        "lsm_inside_struct": (
            LSM, load(8, 1, 1, 0) + load(8, 2, 1, 0) + mov(0) + EXIT, MAC,
            ("bpf_lsm_file_open", 12)),
        "lsm_sleepable": (
            LSM, mov(0) + EXIT, {**MAC, "prog_flags": abi.BPF_F_SLEEPABLE},
            ("bpf_lsm_task_kill", 12)),
        "lsm_nullable": (
            LSM, load(8, 1, 1, 0) + load(8, 0, 1, 32) + mov(0) + EXIT, MAC,
            ("bpf_lsm_mmap_file", 12)),
    }  # fmt: skip


def source_btf() -> tuple[bytes, bytes, bytes]:
    """(BTF with a function, func_info, line_info) for a program of 8 slots with two lines."""
    strings = b"\0int\0count\0shop/count.bpf.c\0"
    strings += b"\tvalue = bpf_map_lookup_elem(&t, &k);\0\treturn *value;\0"
    at = {text: strings.index(b"\0" + text) + 1 for text in (
        b"int", b"count", b"shop", b"\tvalue", b"\treturn")}  # fmt: skip
    types = struct.pack("<IIII", at[b"int"], 1 << 24, 4, 1 << 24 | 32)
    types += struct.pack("<III", 0, 13 << 24, 1)
    types += struct.pack("<III", at[b"count"], 12 << 24 | 1, 2)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    lines = struct.pack("<IIII", 0, at[b"shop"], at[b"\tvalue"], 31 << 10 | 9)
    lines += struct.pack("<IIII", 6, at[b"shop"], at[b"\treturn"], 32 << 10 | 16)
    return head + types + strings, struct.pack("<II", 0, 3), lines


def main() -> int:
    maps = [
        bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 8, 4, name="counts"),
        bpf.map_create(abi.BPF_MAP_TYPE_HASH, 4, 8, 4, name="table"),
        bpf.map_create(abi.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, name="ring"),
    ]
    logs = {}
    for name, (kind, code, fields, target) in cases(*maps).items():
        held = [Pointer(code), Pointer(b"GPL\0")]
        attr = {
            "prog_type": kind, "insns": held[0].address, "insn_cnt": len(code) // 8,
            "license": held[1].address, "prog_name": name[:15].encode(), **fields,
        }  # fmt: skip
        licence = attr.pop("licence", None)
        if licence:
            held.append(Pointer(licence))
            attr["license"] = held[-1].address
        if attr.pop("source", None):
            btf, funcs, lines = source_btf()
            held += [Pointer(funcs), Pointer(lines)]
            attr |= {
                "prog_btf_fd": bpf.btf_load(btf), "func_info": held[2].address,
                "func_info_cnt": 1, "func_info_rec_size": 8, "line_info": held[3].address,
                "line_info_cnt": 2, "line_info_rec_size": 16,
            }  # fmt: skip
        if target is not None:
            found = btf_lookup.resolve([(*target, None)])[0]
            if found is None:
                continue
            attr["attach_btf_id"] = found[1]
        try:
            os.close(load_fd(attr))
        except VerifierError as error:
            log = error.log
            if len(log) > 4000:
                log = f"{log[:1500]}\n[the middle is left out]\n{log[-1500:].split(chr(10), 1)[1]}"
            logs[name] = [error.errno, log]
        except KernelError as error:
            print(f"{name}: {error}", file=sys.stderr)
    print(json.dumps({"release": os.uname().release, "logs": logs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
