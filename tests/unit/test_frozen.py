# SPDX-License-Identifier: BSD-2-Clause
"""The frozen form of a Plan: both ways, the same bytes, and nothing malformed gets through."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpf.errors import FormatError
from pybpf.plan import format as declared
from pybpf.plan import frozen, ops


def sample(**changes: Any) -> ops.Plan:
    load = ops.ProgLoad(
        dst=2, name="p", type=1, license="GPL", insns=bytes(16), section="socket",
        patches=((0, "kfunc", 0), (1, "addr", "jiffies")), fd_array=(1,), btf=0,
        func_info=bytes(8), attach_symbol=0,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": "sämple",
        "slots": 8,
        "symbols": 2,
        "ops": (
            ops.BtfLoad(dst=0, data=b"\x9f\xeb" + bytes(30), optional=True),
            ops.Lookup(names=((0, "f", 12, None, False), (1, "g", 4, "dm_mod", True))),
            ops.MapCreate(dst=1, name="m", type=2, key_size=4, value_size=8, max_entries=-1,
                          extra=1 << 63, pin_path="/sys/fs/bpf/m"),
            ops.MapFill(map=1, entries=((bytes(4), b"12345678"), (b"\1\0\0\0", 1))),
            ops.MapFreeze(map=1),
            ops.Choose(label="v", alternatives=(("a", (load,)), ("b", (load, load))), on=(22,)),
            ops.When(condition=("module", "dm_verity"), then=(load,)),
        ),
        "attach": (
            ops.LinkCreate(dst=3, name="p", prog=2, attach_type=27,
                           extra=(("tracing.cookie", 1 << 40),)),
            ops.Pin(src=3, path="/sys/fs/bpf/l"),
        ),
        "maps": {"m": (1, ("int", 4, False), None)},
        "programs": {"p": 2},
        "links": {"p": 3},
        "variables": {"armed": ("m", 0, 4, ("int", 4, False))},
        "layouts": {"event": ("struct", 4, (("x", 0, ("int", 4, True)),))},
        **changes,
    }  # fmt: skip
    return ops.Plan(**fields)


DATA = frozen.to_bytes(sample())


def test_there_and_back() -> None:
    again = frozen.from_bytes(DATA)
    assert again == sample()
    assert frozen.to_bytes(again) == DATA
    assert frozen.from_bytes(bytearray(DATA)) == sample()
    assert frozen.from_bytes(memoryview(DATA)) == sample()
    assert list(again.maps) == ["m"]
    assert again.ops[2].extra == 1 << 63  # type: ignore[attr-defined]
    assert again.ops[0].optional is True  # type: ignore[attr-defined]


def test_true_is_not_one() -> None:
    """bool and int of equal value stay what they are."""
    lookup = frozen.from_bytes(DATA).ops[1]
    assert [type(field) for field in lookup.names[1]] == [int, str, int, str, bool]  # type: ignore[attr-defined]


def test_construct_agrees() -> None:
    found = declared.describe(DATA)
    assert found.version == frozen.VERSION
    assert found.count == len(found.entries)
    assert found.length == len(DATA) - frozen.HEADER.size
    assert found.sha256 == hashlib.sha256(DATA[frozen.HEADER.size :]).digest()
    values: list[Any] = []
    for entry in found.entries:
        tag, body = entry.tag.decode(), entry.body
        if tag == "t":
            values.append(tuple(values[i] for i in body))
        elif tag == "d":
            items = [values[i] for i in body]
            values.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif tag == "o":
            kind = frozen.CLASSES[body[0]]
            names = kind.FIELDS
            values.append(kind(**dict(zip(names, [values[i] for i in body[1:]], strict=True))))
        elif tag == "s":
            values.append(body.decode())
        elif tag == "I":
            values.append(int.from_bytes(body, "little", signed=True))
        else:
            values.append({"N": None, "T": True, "F": False}.get(tag, body))
    assert values[-1] == sample()


def test_every_truncation_is_refused() -> None:
    for length in range(len(DATA)):
        with pytest.raises(FormatError):
            frozen.from_bytes(DATA[:length])
    with pytest.raises(FormatError, match="says it has"):
        frozen.from_bytes(DATA + b"\0")


def test_every_changed_byte_is_refused() -> None:
    for at in range(len(DATA)):
        changed = bytearray(DATA)
        changed[at] ^= 0x41
        if at in (10, 11):
            continue  # reserved: a later version may use them
        with pytest.raises(FormatError):
            frozen.from_bytes(changed)


def _seal(payload: bytes, count: int) -> bytes:
    return frozen.HEADER.pack(
        frozen.MAGIC, frozen.VERSION, 0, count, len(payload), hashlib.sha256(payload).digest()
    ) + payload  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_forged_payload_is_refused_in_our_words(data: st.DataObject) -> None:
    """With the right hash: malformed entries still end in FormatError, never in another error."""
    payload = bytearray(DATA[frozen.HEADER.size :])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    count = struct.unpack_from("<I", DATA, 12)[0] + data.draw(st.integers(-1, 1))
    try:
        plan = frozen.from_bytes(_seal(bytes(payload), count))
    except FormatError:
        return
    assert isinstance(plan, ops.Plan)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 50))
def test_noise_is_refused(payload: bytes, count: int) -> None:
    with pytest.raises(FormatError):
        frozen.from_bytes(_seal(payload, count))


def test_versions_and_other_files() -> None:
    newer = bytearray(DATA)
    newer[8] = 9
    with pytest.raises(FormatError, match="version 9, this pybpf reads version 1"):
        frozen.from_bytes(newer)
    with pytest.raises(FormatError, match="does not start with its magic"):
        frozen.from_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(FormatError, match="at least 56 bytes, this has 3"):
        frozen.from_bytes(b"abc")
    with pytest.raises(FormatError, match="no frozen Plan"):
        declared.describe(b"abc")


def test_entries_refer_backwards_only() -> None:
    payload = struct.pack("<BII", ord("t"), 1, 0)
    with pytest.raises(FormatError, match="entry 0 of the frozen Plan refers forward"):
        frozen.from_bytes(_seal(payload, 1))
    operation = struct.pack("<BII", ord("o"), 1, 99)
    with pytest.raises(FormatError, match="does not know"):
        frozen.from_bytes(_seal(operation, 1))
    with pytest.raises(FormatError, match="does not end with a Plan"):
        frozen.from_bytes(_seal(struct.pack("<BI", ord("N"), 0), 1))


@pytest.mark.parametrize("value", [1.5, object(), {1, 2}, frozenset()])
def test_what_a_plan_cannot_carry(value: Any) -> None:
    with pytest.raises(FormatError, match="cannot carry"):
        frozen.to_bytes(sample(layouts={"x": value}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slots": 3}, r"LinkCreate.dst is slot 3 of 3|is slot \d of 3|in no slot"),
        ({"symbols": 1}, "symbol 1 of 1"),
        ({"programs": {"p": 99}}, "'p' is in no slot"),
        ({"maps": {"m": (1, None)}}, "slot and two layouts"),
        ({"variables": {"v": ("nomap", 0, 4, None)}}, "variable 'v' has no place"),
        ({"ops": (ops.MapFreeze(map=-1),)}, "MapFreeze.map is slot -1 of 8"),
        ({"ops": (ops.MapFreeze(map="x"),)}, "MapFreeze.map is a str"),
        ({"ops": (ops.Lookup(names=((0, "f", 12, None),)),)}, "Lookup has an item"),
        ({"ops": (ops.MapFill(map=1, entries=((b"k", 77),)),)}, "slot 77 of 8"),
        ({"ops": (ops.Choose(label="c", alternatives=()),)}, "no alternatives"),
        ({"attach": (ops.Pin(src=1, path="relative"),)}, "no absolute path"),
        ({"ops": (ops.ProgLoad(dst=0, name="p", type=1, license="", insns=b"123"),)},
         "3 bytes of instructions"),
        ({"ops": (ops.ProgLoad(dst=0, name="p", type=1, license="", insns=bytes(8),
                               patches=((1, "ksym", 0),)),)}, "patch at instruction 1"),
        ({"ops": (ops.ProgLoad(dst=0, name="p", type=1, license="", insns=bytes(8),
                               line_info=bytes(9)),)}, "9 bytes of line_info"),
    ],
)  # fmt: skip
def test_inconsistent_plans_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FormatError, match=sentence):
        frozen.from_bytes(frozen.to_bytes(sample(**changes)))


def test_nesting_has_an_end() -> None:
    op: ops.Op = ops.MapFreeze(map=0)
    for _ in range(30):
        op = ops.When(condition=("slot", 0), then=(op,))
    with pytest.raises(FormatError, match="nested too deeply"):
        frozen.from_bytes(frozen.to_bytes(sample(ops=(op,))))
