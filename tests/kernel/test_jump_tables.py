# SPDX-License-Identifier: BSD-2-Clause
"""Indirect jumps (gotox) through jump tables, run by the kernel (6.19; x86-64, arm64)."""

from __future__ import annotations

import struct

import pytest

import pybpf
from pybpf.errors import KernelError
from tests.kernel.lacks import enumerator, need
from tests.unit.jump_table_object import build

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("relocate", ["kernel", "python"])
def test_jumps_lead_where_the_table_says(relocate: str, prefix: str) -> None:
    spec = pybpf.read(build()).with_program("through", autoload=True)
    if enumerator("bpf_map_type", "BPF_MAP_TYPE_INSN_ARRAY") is not None:
        with pytest.raises(KernelError, match=r"no map type insn_array \(requires >= v6.19\)"):
            pybpf.load(spec, relocate=relocate)
        need("insn_array")
    with pybpf.load(spec, relocate=relocate) as obj:
        for name in ("direct", "through"):
            results = [
                obj.programs[name].test_run(ctx=struct.pack("=Q", number)).retval
                for number in (0, 1, 2, 3, 1 << 40)
            ]
            assert results == [10, 20, 30, 99, 99]
