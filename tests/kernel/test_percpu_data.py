# SPDX-License-Identifier: BSD-2-Clause
"""Per-CPU global data (.percpu): every CPU begins with the object's initial values."""

from __future__ import annotations

import struct

import pybpf
from pybpf.kernel.cpus import possible_cpus
from tests.unit.elfwriter import ElfWriter


def test_initial_values_are_every_cpus() -> None:
    elf = ElfWriter()
    data = elf.section(".percpu.counters", struct.pack("=QI", 7, 8), flags=3)
    elf.symbol("counters", data, 0, 12)
    elf.section("license", b"GPL\0")
    spec = pybpf.read(elf.build(), name="percpu")
    with pybpf.load(spec) as obj:
        found = obj.maps[".percpu.counters"]
        assert (found.value_size, found.max_entries) == (12, 1)
        values = found[bytes(4)]
        assert [bytes(v)[:12] for v in values] == [struct.pack("=QI", 7, 8)] * possible_cpus()
    with pybpf.load(pybpf.from_bytes(pybpf.to_bytes(pybpf.compile(spec)))) as obj:
        assert obj.maps[".percpu.counters"].max_entries == 1
