# SPDX-License-Identifier: BSD-2-Clause
"""BTF.ext: records by section, longer records of newer compilers, malformed data."""

from __future__ import annotations

import random
import struct

import pytest

from pybpf.btf.ext import BtfExt, CoreRecord, FuncInfo, LineInfo, pack_core_relos
from pybpf.btf.format import formats
from pybpf.btf.model import Btf
from pybpf.btf.write import BtfWriter
from pybpf.errors import FormatError

Rows = list[tuple[int, ...]]


def part(order: str, size: int, sections: list[tuple[int, Rows]]) -> bytes:
    """One subsection with records of ``size`` bytes."""
    out = struct.pack(order + "I", size)
    for name_off, rows in sections:
        out += struct.pack(order + "II", name_off, len(rows))
        for row in rows:
            packed = struct.pack(f"{order}{len(row)}I", *row)
            out += packed + b"\xee" * (size - len(packed))
    return out


def build(byteorder: str = "little", *, extra: int = 0, core: bool = True) -> tuple[bytes, Btf]:
    """A BTF.ext with two sections, and the BTF it belongs to."""
    order = "<" if byteorder == "little" else ">"
    w = BtfWriter(byteorder)
    a, b = w.string("kprobe/a"), w.string("lsm/b")
    access = w.string("0:1")
    btf = w.btf()
    parts = [
        part(order, 8 + extra, [(a, [(0, 1), (64, 2)]), (b, [(0, 3)])]),
        part(order, 16 + extra, [(a, [(0, access, access, 5 << 10 | 7)])]),
        part(order, 16 + extra, [(b, [(8, 4, access, 0), (16, 4, access, 2)])]),
    ]
    if not core:
        parts.pop()
    offsets = []
    at = 0
    for p in parts:
        offsets += [at, len(p)]
        at += len(p)
    header_len = 8 + 8 * len(parts)
    header = struct.pack(order + "HBBI", 0xEB9F, 1, 0, header_len)
    header += struct.pack(f"{order}{len(offsets)}I", *offsets)
    return header + b"".join(parts), btf


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("extra", [0, 8])
def test_records_by_section(byteorder: str, extra: int) -> None:
    data, btf = build(byteorder, extra=extra)
    ext = BtfExt.parse(data, btf)
    assert ext.func_info == {
        "kprobe/a": [FuncInfo(0, 1), FuncInfo(64, 2)],
        "lsm/b": [FuncInfo(0, 3)],
    }
    ((line,),) = ext.line_info.values()
    assert isinstance(line, LineInfo)
    assert (line.line, line.column) == (5, 7)
    (core,) = ext.core_relos.values()
    assert [type(r) for r in core] == [CoreRecord, CoreRecord]
    assert [(r.insn_off, r.kind) for r in core] == [(8, 0), (16, 2)]
    assert btf.name(core[0].access_str_off) == "0:1"


def test_without_core_relocations() -> None:
    data, btf = build(core=False)
    assert BtfExt.parse(data, btf).core_relos == {}


def test_agrees_with_the_construct_declaration() -> None:
    for byteorder in ("little", "big"):
        data, btf = build(byteorder, extra=4)
        declared = formats(byteorder)
        header = declared.ext_header.parse(data)
        ext = BtfExt.parse(data, btf)
        for name, form in (
            ("func_info", declared.func_info),
            ("line_info", declared.line_info),
            ("core_relo", declared.core_relo),
        ):
            start = header.hdr_len + header[f"{name}_off"]
            parsed = form.parse(data[start : start + header[f"{name}_len"]])
            rows = getattr(ext, "core_relos" if name == "core_relo" else name)
            flat = [
                tuple(v for k, v in r.record.items() if k != "_io")
                for s in parsed.sections
                for r in s.records
            ]
            assert flat == [tuple(row) for s in rows.values() for row in s]


def test_byte_orders_must_agree() -> None:
    data, _ = build("big")
    _, btf = build("little")
    with pytest.raises(FormatError, match="endian"):
        BtfExt.parse(data, btf)


def test_cut_short_anywhere_is_a_format_error() -> None:
    data, btf = build()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            BtfExt.parse(data[:length], btf)


@pytest.mark.parametrize("seed", range(20))
def test_mutations_raise_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    data, btf = build(rng.choice(("little", "big")))
    for _ in range(100):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        try:
            BtfExt.parse(bytes(mutated), btf)
        except FormatError:
            pass


def test_core_relos_for_the_kernel() -> None:
    assert pack_core_relos([(8, 1, 2, 3)], "little") == struct.pack("<4I", 8, 1, 2, 3)
    assert pack_core_relos([(8, 1, 2, 3)], "big") == struct.pack(">4I", 8, 1, 2, 3)
