# SPDX-License-Identifier: BSD-2-Clause
"""The kernel's own CO-RE and our own give the same instructions; the verifier prints as we do."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybpf.asm import Instruction, decode, disasm, encode
from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_ENUM,
    KIND_INT,
    KIND_PTR,
    KIND_STRUCT,
    KIND_UNION,
)
from pybpf.btf.ext import pack_core_relos
from pybpf.btf.model import Btf, Type
from pybpf.btf.write import BtfWriter
from pybpf.errors import KernelError, RelocationError
from pybpf.kernel.program import Program, load_fd
from pybpf.reloc import core_spec as cs
from pybpf.reloc.core import CoreRelocator, CoreTarget
from pybpf.spec import CoreRelo
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="no kernel BTF"),
]

SOCKET_FILTER = 1
MOV, EXIT = 0xB7, 0x95


class Local:
    """The types of a made-up program: parts of the kernel's, in another order."""

    def __init__(self, kernel: Btf) -> None:
        self.kernel = kernel
        self.w = BtfWriter()
        self.ids: dict[int, int] = {}
        self.w.add_int("int", 4, signed=True)
        self.func = self.w.add_func("main", self.w.add_proto(1), 1)

    def shallow(self, type_id: int) -> int | None:
        """A type that is compatible as a field's; None for what has no size."""
        found = self.kernel.skip(type_id)
        if found.id in self.ids:
            return self.ids[found.id]
        kind = found.kind
        made: int | None = None
        if kind == KIND_INT:
            made = self.w.add_int(found.name, found.size, signed=found.signed)
        elif kind == KIND_PTR:
            made = self.w.add_ptr(0)
        elif kind in ENUM_KINDS:
            values = [(e.name, e.value) for e in found.enumerators]
            # The kernel looks for candidates of exactly the same kind; libbpf, and we, let an
            # enum and an enum64 stand for each other.
            if kind == KIND_ENUM:
                made = self.w.add_enum(found.name, values, size=found.size, signed=found.kflag)
            else:
                made = self.w.add_enum64(found.name, values, size=found.size, signed=found.kflag)
        elif kind in (KIND_STRUCT, KIND_UNION):
            made = self.w.add_struct(found.name, found.size, [], union=kind == KIND_UNION)
        elif kind == KIND_ARRAY:
            element = self.shallow(found.array.type)
            if element is not None:
                made = self.w.add_array(element, 1, found.array.nelems)
        if made is not None:
            self.ids[found.id] = made
        return made

    def struct(self, found: Type, rng: random.Random) -> tuple[int, list[str]] | None:
        """A struct of some members of ``found`` and one that is not there."""
        members: list[tuple[str, int, int, int]] = []
        at = 0
        chosen = [m for m in found.members if m.name]
        for member in rng.sample(chosen, min(len(chosen), 6)):
            made = self.shallow(member.type)
            if made is None:
                continue
            at = -(-at // 64) * 64
            members.append((member.name, made, at, member.bit_size))
            at += max(self.kernel.size(member.type), 1) * 8
        if not members:
            return None
        members.append(("no_such_member", 1, at, 0))
        tag = found.name + rng.choice(("", "", "___mine"))
        made = self.w.add_struct(tag, at // 8 + 64, members, union=False)
        return made, [m[0] for m in members]


FIELD_RELOS = (cs.FIELD_BYTE_OFFSET, cs.FIELD_BYTE_SIZE, cs.FIELD_EXISTS, cs.FIELD_SIGNED,
               cs.FIELD_LSHIFT_U64, cs.FIELD_RSHIFT_U64)
TYPE_RELOS = (cs.TYPE_EXISTS, cs.TYPE_SIZE, cs.TYPE_ID_TARGET, cs.TYPE_ID_LOCAL, cs.TYPE_MATCHES)


def relocations(local: Local, seed: int) -> Iterator[tuple[int, str, int]]:
    """(type, access string, kind) of many relocations."""
    rng = random.Random(seed)
    pool = [
        t for t in (local.kernel.type(i) for i in rng.sample(range(1, local.kernel.count), 3000))
        if t.name and t.kind in (KIND_STRUCT, *ENUM_KINDS)
    ]
    for found in pool[:120]:
        if found.kind in ENUM_KINDS:
            made = local.shallow(found.id)
            assert made is not None
            index = rng.randrange(max(found.vlen, 1))
            if found.vlen:
                yield made, str(index), cs.ENUMVAL_EXISTS
                yield made, str(index), cs.ENUMVAL_VALUE
            yield made, "0", cs.TYPE_EXISTS
            continue
        built = local.struct(found, rng)
        if built is None:
            continue
        made, names = built
        for i in range(len(names)):
            yield made, f"0:{i}", rng.choice(FIELD_RELOS)
            yield made, f"0:{i}", rng.choice(FIELD_RELOS)
        yield made, "0", rng.choice(TYPE_RELOS)


def in_kernel(btf_fd: int, func: int, code: bytes, core: bytes, count: int) -> bytes:
    """The instructions after the kernel relocated them. Raises KernelError."""
    license_ = Pointer(b"GPL\0")
    insns, records = Pointer(code), Pointer(core)
    info = Pointer(int.to_bytes(0, 4, "little") + func.to_bytes(4, "little"))
    fd = load_fd(
        {
            "prog_type": SOCKET_FILTER,
            "insns": insns.address,
            "insn_cnt": len(code) // 8,
            "license": license_.address,
            "prog_btf_fd": btf_fd,
            # 6.12 ignores core_relos unless there is func_info or line_info
            "func_info": info.address,
            "func_info_cnt": 1,
            "func_info_rec_size": 8,
            "core_relos": records.address,
            "core_relo_cnt": count,
            "core_relo_rec_size": 16,
        }
    )
    with Program.from_fd(fd) as program:
        return program.xlated()


@pytest.mark.parametrize("seed", range(2))
def test_the_kernel_agrees_with_us(seed: int) -> None:
    kernel = Btf.vmlinux()
    local = Local(kernel)
    wanted = list(relocations(local, seed))
    assert len(wanted) > 300
    strings = [local.w.string(access) for _, access, _ in wanted]
    mine = Btf.parse(local.w.build(), name="made up")
    btf_fd = bpf.btf_load(mine.raw())
    compared = refused = 0
    try:
        for (type_id, access, kind), string in zip(wanted, strings, strict=True):
            # Afresh each time: the kernel does not remember which candidates lost, libbpf does.
            relocator = CoreRelocator(mine, CoreTarget(kernel))
            compared_now = compare(relocator, btf_fd, local.func, type_id, access, kind, string)
            compared += compared_now
            refused += not compared_now
    finally:
        os.close(btf_fd)
    assert compared > 250, f"{compared} compared, {refused} refused by both"


def compare(
    relocator: CoreRelocator, btf_fd: int, func: int, type_id: int, access: str, kind: int,
    string: int,
) -> bool:
    """One relocation by both. False where both refuse it."""
    def code(value: int) -> bytes:
        return encode([Instruction(0, MOV, 0, 0, 0, value), Instruction(1, EXIT, 0, 0, 0, 0)])

    relo = CoreRelo(0, type_id, access, string, kind)
    label = f"{cs.RELO_NAMES[kind]} of [{type_id}] {relocator.local.type(type_id).name} {access}"
    value = 0
    for _ in range(2):
        ours = bytearray(code(value))
        try:
            (outcome,) = relocator.relocate(ours, [relo])
            break
        except RelocationError as e:
            # What the compiler would have written: told by the error, as a compiler is not here.
            told = re.search(r"BTF says (-?\d+)", str(e))
            if told is None or not -(1 << 31) <= int(told[1]) < 1 << 31:
                outcome = None
                break
            value = int(told[1])
    core = pack_core_relos([(0, type_id, string, kind)], "little")
    try:
        theirs = in_kernel(btf_fd, func, code(value), core, 1)
    except KernelError as e:
        theirs, said = b"", f"{e} {getattr(e, 'log', '')}"
    if not theirs:
        # A poisoned instruction is reached here, so the verifier refuses the program.
        assert outcome is None or outcome.poisoned is not None, (label, said)
        assert outcome is None or "195896080" in said, (label, said)
        return outcome is not None
    assert outcome is not None, label
    assert decode(theirs)[0] == decode(bytes(ours))[0], (label, outcome.text())
    return True


LOG_LINE = re.compile(r"^(\d+): (\([0-9a-f]{2}\) .*?)(?:\s+;.*)?$")


def test_the_verifier_prints_instructions_as_we_do() -> None:
    code = bytes.fromhex(
        "b706000005000000"  # r6 = 5
        "bf61000000000000"  # r1 = r6
        "b402000007000000"  # w2 = 7
        "0701000008000000"  # r1 += 8
        "0c12000000000000"  # w2 += w1
        "1f21000000000000"  # r1 -= r2
        "2701000003000000"  # r1 *= 3
        "37010000ffff0000"  # r1 /= 65535
        "9402000003000000"  # w2 %= 3
        "57010000ff000000"  # r1 &= 255
        "4702000001000000"  # r2 |= 1
        "a702000001000000"  # r2 ^= 1
        "6701000020000000"
        "7701000020000000"
        "c701000002000000"
        "8701000000000000"  # r1 = -r1
        "dc01000020000000"  # be32
        "d401000010000000"  # le16
        "180300000100000000000000ffff0000"
        "7b1af8ff00000000"  # *(u64 *)(r10 -8) = r1
        "620af0ff2a000000"  # *(u32 *)(r10 -16) = 42
        "720afcff01000000"
        "79a4f8ff00000000"  # r4 = *(u64 *)(r10 -8)
        "61a4f0ff00000000"
        "71a4fcff00000000"
        "7a0af0ff00000000"
        "b705000001000000"  # r5 = 1
        "db5af8ff00000000"  # lock +=
        "db5af8ff41000000"  # fetch_or
        "c35af0ff51000000"  # 32-bit fetch_and
        "db5af8ffe1000000"  # xchg
        "b700000000000000"
        "db5af8fff1000000"  # cmpxchg
        "8500000005000000"  # call bpf_ktime_get_ns
        "1500010007000000"  # if r0 == 7
        "b700000001000000"
        "a600010005000000"  # if w0 < 5
        "0500000000000000"  # goto pc+0
        "7d60000000000000"  # if r0 s>= r6 goto pc+0
        "b700000000000000"
        "9500000000000000"
    )
    license_, insns = Pointer(b"GPL\0"), Pointer(code)
    logs: list[str] = []
    fd = load_fd(
        {
            "prog_type": SOCKET_FILTER,
            "insns": insns.address,
            "insn_cnt": len(code) // 8,
            "license": license_.address,
        },
        log_level=abi.BPF_LOG_LEVEL2 if hasattr(abi, "BPF_LOG_LEVEL2") else 2,
        log_out=logs,
    )
    os.close(fd)
    printed = {}
    for line in "".join(logs).splitlines():
        found = LOG_LINE.match(line)
        if found:
            printed[int(found[1])] = found[2].rstrip()
    ours = {int(slot): text for slot, _, text in (s.partition(": ") for s in disasm(code))}
    assert len(printed) > 38
    assert {slot: ours[slot] for slot in printed} == printed
