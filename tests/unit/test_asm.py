# SPDX-License-Identifier: BSD-2-Clause
"""Instructions: decode, encode, and the verifier's syntax."""

from __future__ import annotations

import random

import pytest

from pybpf.asm import Instruction, decode, disasm, encode, format_insn
from pybpf.errors import FormatError


def test_decode_and_encode_in_both_byte_orders() -> None:
    wanted = [
        Instruction(0, 0xB7, 1, 0, 0, -1),
        Instruction(1, 0x18, 2, 1, 0, 7, -2),
        Instruction(3, 0x61, 3, 10, -8, 0),
        Instruction(4, 0x95, 0, 0, 0, 0),
    ]
    little = encode(wanted, "little")
    big = encode(wanted, "big")
    assert little[:8].hex() == "b7010000ffffffff"
    assert big[:8].hex() == "b7100000ffffffff"
    assert little[24:32].hex() == "61a3f8ff00000000"
    assert big[24:32].hex() == "613afff800000000"
    assert decode(little, "little") == wanted
    assert decode(big, "big") == wanted
    assert wanted[1].imm64 == 0xFFFFFFFE_00000007
    assert wanted[1].slots == 2


def test_calls() -> None:
    helper, pseudo = decode(bytes.fromhex("850000000e000000" "8510000005000000"))
    assert (helper.helper, helper.subprogram) == (14, None)
    assert (pseudo.helper, pseudo.subprogram) == (None, 7)


@pytest.mark.parametrize("data", [b"\0" * 7, b"\x18" + b"\0" * 7,
                                  b"\x18" + b"\0" * 7 + b"\x95" + b"\0" * 7])
def test_malformed_code(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("b701000005000000", "(b7) r1 = 5"),
        ("b4010000ffffffff", "(b4) w1 = -1"),
        ("bf12000000000000", "(bf) r2 = r1"),
        ("bc12000000000000", "(bc) w2 = w1"),
        ("bf12080000000000", "(bf) r2 = (s8)r1"),
        ("bf12200000000000", "(bf) r2 = (s32)r1"),
        ("bf12010001000000", "(bf) r2 = addr_space_cast(r1, 0, 1)"),
        ("0701000008000000", "(07) r1 += 8"),
        ("1f21000000000000", "(1f) r1 -= r2"),
        ("3f21010000000000", "(3f) r1 s/= r2"),
        ("9c21000000000000", "(9c) w1 %= w2"),
        ("c701000003000000", "(c7) r1 s>>= 3"),
        ("8701000000000000", "(87) r1 = -r1"),
        ("d401000010000000", "(d4) r1 = le16 r1"),
        ("dc01000020000000", "(dc) r1 = be32 r1"),
        ("d701000040000000", "(d7) r1 = bswap64 r1"),
        ("18010000ffffffff00000000ffffff7f", "(18) r1 = 0x7fffffffffffffff"),
        ("61a3f8ff00000000", "(61) r3 = *(u32 *)(r10 -8)"),
        ("81a3040000000000", "(81) r3 = *(s32 *)(r10 +4)"),
        ("7b1af8ff00000000", "(7b) *(u64 *)(r10 -8) = r1"),
        ("720a00000c000000", "(72) *(u8 *)(r10 +0) = 12"),
        ("db1af8ff00000000", "(db) lock *(u64 *)(r10 -8) += r1"),
        ("c31af8ff41000000", "(c3) r1 = atomic_fetch_or((u32 *)(r10 -8), r1)"),
        ("db1af8ffe1000000", "(db) r1 = atomic64_xchg((u64 *)(r10 -8), r1)"),
        ("db1af8fff1000000", "(db) r0 = atomic64_cmpxchg((u64 *)(r10 -8), r0, r1)"),
        ("dba1f8ff00010000", "(db) r1 = load_acquire((u64 *)(r10 -8))"),
        ("d31af8ff10010000", "(d3) store_release((u8 *)(r10 -8), r1)"),
        ("0500fdff00000000", "(05) goto pc-3"),
        ("0600000005000000", "(06) gotol pc+5"),
        ("0d01000000000000", "(0d) gotox r1"),
        ("e500020000000000", "(e5) may_goto pc+2"),
        ("1501020007000000", "(15) if r1 == 0x7 goto pc+2"),
        ("a6010200ffffffff", "(a6) if w1 < 0xffffffff goto pc+2"),
        ("6d21feff00000000", "(6d) if r1 s> r2 goto pc-2"),
        ("4521020000000000", "(45) if r1 & 0x0 goto pc+2"),
        ("850000000e000000", "(85) call bpf_get_current_pid_tgid#14"),
        ("85000000ffffff7f", "(85) call unknown#2147483647"),
        ("8510000005000000", "(85) call pc+5"),
        ("8520000005000000", "(85) call kernel-function#5"),
        ("9500000000000000", "(95) exit"),
        ("2000000004000000", "(20) r0 = *(u32 *)skb[4]"),
        ("4810000004000000", "(48) r0 = *(u16 *)skb[r1 + 4]"),
    ],
)
def test_syntax(code: str, text: str) -> None:
    assert disasm(bytes.fromhex(code)) == [f"0: {text}"]


def test_poisoned_instructions_show() -> None:
    assert disasm(bytes.fromhex("850000001023ad0b")) == ["0: (85) call unknown#195896080"]


def test_names_from_the_caller() -> None:
    code = bytes.fromhex(
        "1811000003000000" "0000000000000000"
        "1822000003000000" "0000000008000000"
        "8520000063000000" "8510000002000000" "9500000000000000"
    )  # fmt: skip

    def name(ins: Instruction) -> str | None:
        if ins.opcode == 0x18:
            return "events"
        return "bpf_rcu_read_lock" if ins.src == 2 else "helper_fn"

    assert disasm(code, name=name) == [
        "0: (18) r1 = map[events]",
        "2: (18) r2 = map[events][0]+8",
        "4: (85) call bpf_rcu_read_lock#99",
        "5: (85) call helper_fn",
        "6: (95) exit",
    ]


@pytest.mark.parametrize("seed", range(10))
def test_any_bytes_disassemble_or_are_refused(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        data = rng.randbytes(16)
        try:
            found = decode(data)
        except FormatError:
            continue
        assert all(format_insn(i) for i in found)
        if all(i.opcode != 0x18 for i in found):
            assert encode(found) == data
