# SPDX-License-Identifier: BSD-2-Clause
"""Values by layout tuples, both ways, both byte orders."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpf.errors import UsageError
from pybpf.kernel.layout import cstr, decode, encode, size_of

U8, U32, S32, U64 = ("int", 1, False), ("int", 4, False), ("int", 4, True), ("int", 8, False)
COLOUR = ("enum", 4, False, (("RED", 0), ("BLUE", 7)))
NAME = ("array", ("char", 1), 8, 1)
INNER = ("union", 4, (("word", 0, U32), ("bytes", 0, ("array", U8, 4, 1))))
EVENT = (
    "struct", 40,
    (
        ("pid", 0, U32),
        ("result", 4, S32),
        ("comm", 8, NAME),
        ("", 16, INNER),
        ("flags", 20, U32, 0, 3),
        ("kind", 20, ("int", 4, True), 3, 5),
        ("big", 20, U32, 8, 24),
        ("where", 24, ("ptr", 8)),
        ("ok", 32, ("bool", 1)),
        ("colour", 36, COLOUR),
    ),
)  # fmt: skip
SAMPLE = {
    "pid": 1, "result": -13, "comm": b"cat\0\0\0\0\0", "word": 0x04030201, "bytes": [1, 2, 3, 4],
    "flags": 5, "kind": -2, "big": 0xABCDEF, "where": 1 << 63, "ok": True, "colour": 7,
}  # fmt: skip


def test_a_struct_with_everything() -> None:
    data = struct.pack("<Ii8sIIQ?3xI", 1, -13, b"cat", 0x04030201,
                       0xABCDEF << 8 | (-2 & 31) << 3 | 5, 1 << 63, True, 7)  # fmt: skip
    assert size_of(EVENT) == len(data) == 40
    assert decode(EVENT, data) == SAMPLE
    assert decode(EVENT, memoryview(b"xx" + data), 2) == SAMPLE
    value = {k: v for k, v in SAMPLE.items() if k != "bytes"}
    assert encode(EVENT, value) == data
    assert encode(EVENT, {**value, "colour": "BLUE", "comm": "cat"}) == data
    assert encode(EVENT, {}) == bytes(40)


def test_big_endian_bit_fields() -> None:
    """BTF counts a big-endian machine's bits from the most significant one."""
    layout = ("struct", 4, (("a", 0, U32, 0, 3), ("b", 0, U32, 3, 5), ("c", 0, U32, 8, 24)))
    word = 0b101 << 29 | 0b10010 << 24 | 0xABCDEF
    data = struct.pack(">I", word)
    assert decode(layout, data, 0, "big") == {"a": 5, "b": 18, "c": 0xABCDEF}
    assert encode(layout, {"a": 5, "b": 18, "c": 0xABCDEF}, "big") == data
    assert decode(U32, b"\1\2\3\4", 0, "big") == 0x01020304


def test_arrays_and_others() -> None:
    pairs = ("array", ("struct", 6, (("x", 0, U32),)), 2, 8)
    assert decode(pairs, struct.pack("<IIII", 1, 9, 2, 9)) == [{"x": 1}, {"x": 2}]
    assert encode(pairs, [{"x": 1}]) == struct.pack("<IIII", 1, 0, 0, 0)
    assert decode(("float", 8), struct.pack("<d", 0.5)) == 0.5
    assert encode(("float", 4), 0.5) == struct.pack("<f", 0.5)
    assert decode(("opaque", 3), b"abc") == b"abc"
    assert decode(("char", 1), b"a") == 97
    assert encode(("char", 1), "a") == b"a"
    assert cstr(b"name\0rest") == "name"
    assert cstr(b"\xff\0") == "\udcff"


@pytest.mark.parametrize(
    ("layout", "value", "sentence"),
    [
        (U8, 256, "256 does not fit into an unsigned integer of 1 bytes"),
        (S32, 1 << 31, "a signed integer of 4 bytes"),
        (U32, "x", "an integer is needed, not str"),
        (COLOUR, "GREEN", "no 'GREEN'; it has: RED, BLUE"),
        (EVENT, {"pidd": 1}, "no member pidd; there are: big, bytes"),
        (EVENT, 5, "a dict of members is needed"),
        (EVENT, {"flags": 8}, "member .flags: 8 does not fit into its 3 bits"),
        (EVENT, {"kind": -17}, "does not fit into its 5 bits"),
        (NAME, b"123456789", "9 bytes given where 8 are needed"),
        (("array", U32, 2, 4), [1, 2, 3], "at most 2 values"),
        (U32, b"abc", "3 bytes given where 4 are needed"),
        (("float", 16), 1.0, "takes 16 bytes, not float"),
    ],
)
def test_what_does_not_fit(layout: Any, value: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        encode(layout, value)


@pytest.mark.parametrize("offset", [-1, 1, 100])
def test_too_few_bytes(offset: int) -> None:
    with pytest.raises(UsageError, match="does not fit into 40 bytes"):
        decode(EVENT, bytes(40), offset)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.integers(0, 2**40 - 1)), max_size=12),
    st.sampled_from(["little", "big"]),
)
def test_bit_fields_go_both_ways(fields: list[tuple[int, bool, int]], order: str) -> None:
    """Any run of neighbouring bit-fields encodes and decodes to the same values."""
    members, value, at = [], {}, 0
    for i, (width, signed, number) in enumerate(fields):
        number &= (1 << width) - 1
        if signed and number >> width - 1:
            number -= 1 << width
        members.append((f"f{i}", at // 8, ("int", 8, signed), at % 8, width))
        value[f"f{i}"] = number
        at += width
    layout = ("struct", (at + 7) // 8 + 8, tuple(members))
    assert decode(layout, encode(layout, value, order), 0, order) == value


@settings(deadline=None)
@given(st.binary(min_size=40, max_size=40))
def test_decoding_then_encoding_gives_the_bytes(data: bytes) -> None:
    value = decode(EVENT, data)
    value.pop("bytes")
    again = encode(EVENT, value)
    # Padding (33 to 35) is not a field, and any non-zero byte reads as True.
    assert again[:32] == data[:32]
    assert again[36:] == data[36:]
    assert again[32] == (data[32] != 0)
