# SPDX-License-Identifier: BSD-2-Clause
"""Maps defined by structs in the section ``maps``: how it was done before BTF.

Each symbol of the section is one ``struct bpf_map_def``: five 32-bit numbers (type, key size,
value size, entries, flags). libbpf dropped them in 1.0; objects in the field still have them.
"""

from __future__ import annotations

import struct

from pybpf.elf.btf_maps import ring_size
from pybpf.elf.image import STT_NOTYPE, STT_OBJECT, ElfImage
from pybpf.spec import MapSpec
from pybpf.sys import abi

__all__ = ["LEGACY", "read_legacy_maps"]

LEGACY = "maps"
_FIELDS = 5


def read_legacy_maps(image: ElfImage) -> list[tuple[int, MapSpec]]:
    """(byte offset in the section, map), by offset. Raises FormatError."""
    section = image.by_name.get(LEGACY)
    if section is None or section.size == 0:
        return []
    data = image.data(section)
    symbols = sorted(
        (s.value, s.name)
        for s in image.symbols
        if s.section == section.number and s.type in (STT_NOTYPE, STT_OBJECT) and s.name
    )
    if not symbols:
        raise image.error("no symbol says which maps it defines.", section=LEGACY)
    order = "<" if image.byteorder == "little" else ">"
    ends = [value for value, _ in symbols[1:]] + [len(data)]
    out = []
    for (start, name), end in zip(symbols, ends, strict=True):
        size = end - start
        if start + 4 * _FIELDS > len(data) or size < 4 * _FIELDS:
            raise image.error(
                f"its definition has {size} bytes; struct bpf_map_def has {4 * _FIELDS}.",
                section=LEGACY,
                map=name,
            )
        if data[start + 4 * _FIELDS : end].strip(b"\0"):
            raise image.error(
                "its definition says more than struct bpf_map_def can (an iproute2 map?).",
                hint="Define the map through BTF, in section .maps.",
                section=LEGACY,
                map=name,
            )
        kind, key, value, entries, flags = struct.unpack_from(f"{order}{_FIELDS}I", data, start)
        if kind == abi.BPF_MAP_TYPE_UNSPEC:
            raise image.error("its definition gives no type.", section=LEGACY, map=name)
        if kind in (abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF):
            entries = ring_size(entries)
        out.append((start, MapSpec(name, kind, key, value, entries, flags, section=LEGACY)))
    return out
