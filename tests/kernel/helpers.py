# SPDX-License-Identifier: BSD-2-Clause
"""What kernel tests share: instructions in bytes, small BTF, Plans, and counting what lives."""

from __future__ import annotations

import gc
import os
import struct
import time
from collections.abc import Callable
from typing import Any

from pybpf import kernel
from pybpf.errors import KernelError
from pybpf.kernel.btf import BtfObject
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.kernel.program import Program
from pybpf.plan import ops
from pybpf.sys import abi

HASH, ARRAY, RINGBUF = abi.BPF_MAP_TYPE_HASH, abi.BPF_MAP_TYPE_ARRAY, abi.BPF_MAP_TYPE_RINGBUF
SOCKET, XDP, TRACING = 1, 6, 26
RAW_TP, SYSCALL = 17, 31


def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def mov(dst: int, imm: int) -> bytes:
    return insn(0xB7, dst, imm=imm)


def mov_reg(dst: int, src: int) -> bytes:
    return insn(0xBF, dst, src)


def ldimm64(dst: int, src: int, imm: int = 0, high: int = 0) -> bytes:
    return insn(0x18, dst, src, 0, imm) + insn(0, imm=high)


def call(helper: int) -> bytes:
    return insn(0x85, imm=helper)


EXIT = insn(0x95)


def returns(value: int) -> bytes:
    return mov(0, value) + EXIT


def small_btf() -> bytes:
    """BTF of one type: int, 4 bytes, signed, named "int"."""
    strings = b"\0int\0"
    types = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return head + types + strings


def open_fds() -> set[str]:
    """What this process has open: "fd → target"."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} → {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            pass  # the directory's own fd
    return found


def fds_to_begin_with() -> set[str]:
    """As open_fds(), once what earlier tests dropped in reference cycles is gone: it would go
    at any time later, and be missed."""
    gc.collect()
    return open_fds()


def _each(cls: Any, ids: Any) -> list[Any]:
    found = []
    for ident in ids:
        try:
            found.append(cls.from_id(ident))
        except KernelError as error:
            if error.errno != 2:
                raise
    return found


def live_names(prefix: str) -> list[str]:
    """Every map and program of the kernel whose name starts with ``prefix``, and their links,
    with their ids."""
    found, programs = [], {}
    for m in _each(Map, kernel.map_ids()):
        with m:
            if m.name.startswith(prefix):
                found.append(f"map {m.name} ({m.id})")
    for p in _each(Program, kernel.program_ids()):
        with p:
            if p.name.startswith(prefix):
                found.append(f"program {p.name} ({p.id})")
                programs[p.id] = p.name
    for link in _each(Link, kernel.link_ids()):
        with link:
            if link.prog_id in programs:
                found.append(f"link of {programs[link.prog_id]} ({link.id})")
    return found


def btf_count() -> int:
    """Loaded BTF objects that are not the kernel's own."""
    number = 0
    for btf in _each(BtfObject, kernel.btf_ids()):
        with btf:
            number += not btf.info()["kernel_btf"]
    return number


def settle(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Wait for a condition: the kernel frees programs and maps after an RCU grace period."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def plan(
    *operations: ops.Op,
    attach: tuple[ops.Op, ...] = (),
    slots: int = 32,
    symbols: int = 8,
    name: str = "test",
    **more: Any,
) -> ops.Plan:
    """A Plan; maps, programs and links are named after the operations that make them."""
    maps, programs, links = {}, {}, {}
    stack: list[Any] = list(operations + attach)
    while stack:
        op = stack.pop(0)
        if isinstance(op, ops.MapCreate):
            maps[op.name] = (op.dst, None, None)
        elif isinstance(op, ops.ProgLoad):
            programs[op.name] = op.dst
        elif isinstance(op, ops.LinkCreate):
            links[op.name] = op.dst
        elif isinstance(op, ops.Choose):
            stack += [inner for _, branch in op.alternatives for inner in branch]
        elif isinstance(op, ops.When):
            stack += [*op.then, *op.otherwise]
    fields = {
        "maps": maps, "programs": programs, "links": links, "variables": {}, "layouts": {}, **more
    }  # fmt: skip
    return ops.Plan(
        name=name, slots=slots, symbols=symbols, ops=operations, attach=attach, **fields
    )


def prog(dst: int, name: str, insns: bytes, type: int = SOCKET, **more: Any) -> ops.ProgLoad:
    return ops.ProgLoad(dst=dst, name=name, type=type, license="GPL", insns=insns, **more)


def array(dst: int, name: str, value_size: int = 8, entries: int = 1, **more: Any) -> ops.MapCreate:
    return ops.MapCreate(
        dst=dst, name=name, type=ARRAY, key_size=4, value_size=value_size, max_entries=entries,
        **more,
    )  # fmt: skip
