# SPDX-License-Identifier: BSD-2-Clause
"""BTF.ext: func_info, line_info and CO-RE relocations of each program section.

Offsets of instructions are bytes in the ELF section, as in the file. Records longer than the
known part (a newer compiler) are read as far as they are known, as libbpf and the kernel do.
Source: include/uapi/linux/btf.h and bpf.h, Documentation/bpf/btf.rst ("The .BTF.ext section").
"""

from __future__ import annotations

import struct

from pybpf.btf.consts import BTF_VERSION
from pybpf.btf.header import magic_byteorder
from pybpf.btf.model import Btf
from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["BtfExt", "CoreRecord", "FuncInfo", "LineInfo", "has_core_relos", "pack_core_relos"]


class FuncInfo(NamedTuple):
    """struct bpf_func_info; insn_off: byte in the section; type_id: a FUNC."""

    insn_off: int
    type_id: int


class LineInfo(NamedTuple):
    """struct bpf_line_info; insn_off: byte in the section; line_col: line << 10 | column."""

    insn_off: int
    file_name_off: int
    line_off: int
    line_col: int

    @property
    def line(self) -> int:
        """Line number, from 1."""
        return self.line_col >> 10

    @property
    def column(self) -> int:
        """Column, from 1 (0: not known)."""
        return self.line_col & 0x3FF


class CoreRecord(NamedTuple):
    """struct bpf_core_relo; insn_off: byte in the section; kind: enum bpf_core_relo_kind."""

    insn_off: int
    type_id: int
    access_str_off: int
    kind: int


_HEADER = "HBBI"
_HEADER_LEN = 24  # magic … line_info_len; 32 with core_relo_off and core_relo_len


class BtfExt(NamedTuple):
    """What .BTF.ext says, by ELF section name, in the order of the file."""

    byteorder: str
    func_info: dict[str, list[FuncInfo]]
    line_info: dict[str, list[LineInfo]]
    core_relos: dict[str, list[CoreRecord]]

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview | mmap.mmap, btf: Btf) -> BtfExt:
        """Read a .BTF.ext section; ``btf`` is the .BTF beside it. Raises FormatError."""
        label = f"{btf.label.removesuffix(' (.BTF)')} (.BTF.ext)"
        blob = bytes(data)
        byteorder = magic_byteorder(blob, label)
        if byteorder != btf.byteorder:
            raise FormatError(
                f"it is {byteorder}-endian, the BTF beside it {btf.byteorder}-endian", btf=label
            )
        if len(blob) < _HEADER_LEN:
            raise FormatError(f"{len(blob)} bytes are too few for its header", btf=label)
        order = "<" if byteorder == "little" else ">"
        _magic, version, flags, hdr_len = struct.unpack_from(order + _HEADER, blob)
        if version != BTF_VERSION:
            raise FormatError(f"version {version} is not known (1 is)", btf=label)
        if flags:
            raise FormatError(f"flags {flags:#x} are not known", btf=label)
        if hdr_len < _HEADER_LEN or hdr_len >= len(blob):
            raise FormatError(
                f"its header says it is {hdr_len} bytes long, the data has {len(blob)}", btf=label
            )
        ranges = list(struct.unpack_from(order + "4I", blob, 8))
        # BTF.ext before CO-RE (LLVM 8) has no core_relo fields.
        ranges += struct.unpack_from(order + "2I", blob, 24) if hdr_len >= 32 else (0, 0)
        reader = _Reader(blob, hdr_len, order, btf, label)
        func_info = reader.read("func_info", ranges[0], ranges[1], 2)
        line_info = reader.read("line_info", ranges[2], ranges[3], 4)
        core = reader.read("core_relo", ranges[4], ranges[5], 4)
        return cls(
            byteorder,
            {s: list(map(FuncInfo._make, rows)) for s, rows in func_info.items()},
            {s: list(map(LineInfo._make, rows)) for s, rows in line_info.items()},
            {s: list(map(CoreRecord._make, rows)) for s, rows in core.items()},
        )


class _Reader:
    """Reads one subsection: u32 record size, then per ELF section a head and its records."""

    def __init__(self, blob: bytes, hdr_len: int, order: str, btf: Btf, label: str) -> None:
        self.blob = blob
        self.hdr_len = hdr_len
        self.order = order
        self.btf = btf
        self.label = label

    def read(
        self, what: str, offset: int, length: int, words: int
    ) -> dict[str, list[tuple[int, ...]]]:
        """Records of ``words`` 32-bit words each, by section name."""
        found: dict[str, list[tuple[int, ...]]] = {}
        if not length:
            return found
        start = self.hdr_len + offset
        end = start + length
        if offset % 4 or length < 4 or end > len(self.blob):
            raise FormatError(
                f"its {what} part [{offset}, +{length}) does not fit the {len(self.blob)} bytes",
                btf=self.label,
            )
        (size,) = struct.unpack_from(self.order + "I", self.blob, start)
        if size < words * 4 or size % 4:
            raise FormatError(
                f"a record of its {what} part takes {size} bytes, at least {words * 4} are needed",
                btf=self.label,
            )
        at = start + 4
        if at == end:
            raise FormatError(f"its {what} part has no records", btf=self.label)
        record = struct.Struct(f"{self.order}{words}I{size - words * 4}x")
        while at < end:
            if at + 8 > end:
                raise FormatError(f"its {what} part is cut short", btf=self.label)
            name_off, count = struct.unpack_from(self.order + "II", self.blob, at)
            at += 8
            if not count:
                raise FormatError(f"its {what} part has a section without records",
                                  btf=self.label)
            if count * size > end - at:
                raise FormatError(
                    f"its {what} part is cut short: {count} records of {size} bytes for section "
                    f"{self.btf.name(name_off)!r} do not fit",
                    btf=self.label,
                )
            try:
                name = self.btf.name(name_off)
            except FormatError:
                if what == "core_relo":
                    raise
                name = ""  # of no section
            rows = found.setdefault(name, [])
            rows.extend(self._records(record, at, count))
            at += count * size
        return found

    def _records(self, record: struct.Struct, at: int, count: int) -> Iterator[tuple[int, ...]]:
        yield from record.iter_unpack(memoryview(self.blob)[at : at + count * record.size])


def has_core_relos(data: bytes, byteorder: str) -> bool:
    """Whether the header of a .BTF.ext section, damaged otherwise, tells of CO-RE relocations."""
    if len(data) < 32:
        return False
    order = "<" if byteorder == "little" else ">"
    hdr_len, core_len = struct.unpack_from(order + "4xI20xI", data)
    return bool(hdr_len >= 32 and core_len)


def pack_core_relos(records: Sequence[tuple[int, int, int, int]], byteorder: str) -> bytes:
    """struct bpf_core_relo array for BPF_PROG_LOAD (v5.17): (insn_off in bytes, type_id,
    access_str_off, kind) each."""
    order = "<" if byteorder == "little" else ">"
    return b"".join(struct.pack(order + "4I", *record) for record in records)
