# SPDX-License-Identifier: BSD-2-Clause
"""The BTF header: magic, byte order, where types and strings lie, layouts of unknown kinds."""

from __future__ import annotations

import struct

from pybpf.btf.consts import BTF_MAGIC, HEADER_LEN, RECORD_WORDS
from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["Header", "magic_byteorder"]


def magic_byteorder(data: bytes | bytearray | memoryview | mmap.mmap, name: str) -> str:
    """Byte order told by the magic number that BTF and BTF.ext begin with."""
    magic = bytes(data[:2])
    for order in ("little", "big"):
        if magic == BTF_MAGIC.to_bytes(2, order):
            return order
    raise FormatError(
        f"it begins with {magic.hex() or 'nothing'}, not with BTF's magic number eb9f", btf=name
    )


class Header(NamedTuple):
    """struct btf_header, checked. Ranges are (start, end) in bytes of the whole blob.

    kind_words: kind → (32-bit words after struct btf_type, words per entry); what the kernel
    of the data knows and this library does not is taken from the layout section (v7.x).
    """

    byteorder: str
    flags: int
    hdr_len: int
    type_range: tuple[int, int]
    str_range: tuple[int, int]
    layout_range: tuple[int, int]
    kind_words: Mapping[int, tuple[int, int]]

    @classmethod
    def parse(
        cls,
        data: bytes | bytearray | memoryview | mmap.mmap,
        *,
        byteorder: str | None = None,
        name: str = "",
        split: bool = False,
    ) -> Header:
        """Read and check the header. split: it goes on from a base. Raises FormatError."""
        total = len(data)
        found = magic_byteorder(data, name)
        if byteorder is not None and byteorder != found:
            raise FormatError(f"it is {found}-endian, {byteorder}-endian was expected", btf=name)
        if total < HEADER_LEN:
            raise FormatError(f"{total} bytes are too few for a BTF header", btf=name)
        order = "<" if found == "little" else ">"
        _magic, _version, flags, hdr_len, type_off, type_len, str_off, str_len = struct.unpack(
            order + "HBBIIIII", bytes(data[:HEADER_LEN])
        )
        # The version is left to the kernel, as libbpf leaves it.
        if hdr_len < HEADER_LEN or hdr_len > total:
            raise FormatError(
                f"its header says it is {hdr_len} bytes long, the data has {total}", btf=name
            )
        layout_off = layout_len = 0
        if hdr_len >= HEADER_LEN + 8:
            layout_off, layout_len = struct.unpack(
                order + "II", bytes(data[HEADER_LEN : HEADER_LEN + 8])
            )
        body = total - hdr_len
        for what, off, size in (
            ("type", type_off, type_len),
            ("string", str_off, str_len),
            ("layout", layout_off, layout_len),
        ):
            if off + size > body:
                raise FormatError(
                    f"its {what} section [{off}, +{size}) exceeds the {body} bytes of data",
                    btf=name,
                )
        if type_off % 4 or type_len % 4 or layout_off % 4:
            raise FormatError("its type section is not aligned to 4 bytes", btf=name)
        if type_off + type_len > str_off:
            raise FormatError("its strings do not begin behind its types", btf=name)
        strings = (hdr_len + str_off, hdr_len + str_off + str_len)
        # A split BTF (a module's) may have no strings of its own, and goes on where its base's
        # end, so its first is a name; else a first byte that is no NUL would make offset 0,
        # "no name", a name.
        if str_len and (data[strings[1] - 1] or (data[strings[0]] and not split)):
            raise FormatError(
                "its string section does not begin and end with a NUL byte", btf=name
            )
        layout = (hdr_len + layout_off, hdr_len + layout_off + layout_len)
        return cls(
            found,
            flags,
            hdr_len,
            (hdr_len + type_off, hdr_len + type_off + type_len),
            strings,
            layout,
            _kind_words(bytes(data[layout[0] : layout[1]]), name),
        )


def _kind_words(layout: bytes, name: str) -> Mapping[int, tuple[int, int]]:
    """RECORD_WORDS, extended by struct btf_layout {u8 info_sz, elem_sz; u16 flags} a kind."""
    if not layout:
        return RECORD_WORDS
    known = dict(RECORD_WORDS)
    for kind in range(len(layout) // 4):
        info_sz, elem_sz = layout[kind * 4], layout[kind * 4 + 1]
        if kind and kind not in known:
            if info_sz % 4 or elem_sz % 4:
                raise FormatError(
                    f"the layout of kind {kind} ({info_sz} + n * {elem_sz} bytes) is not in words",
                    btf=name,
                )
            known[kind] = (info_sz // 4, elem_sz // 4)
    return known
