# SPDX-License-Identifier: BSD-2-Clause
"""restrict.guard on a real map: stores, and that nothing stays mapped."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybpf.errors import KernelError
from pybpf.kernel import map as maps
from pybpf.sys import abi as bpf_abi
from restrict import guard
from restrict.errors import RestrictError

PLACES = {
    "armed": (0, 4),
    "audit": (4, 4),
    "initramfs_dev": (8, 4),
    "owner_tgid": (12, 4),
    "owner_start_ticks": (16, 8),
    "guard_map_ids": (24, 16),
    "guard_program_ids": (40, 16),
    "guard_link_ids": (56, 16),
    "deputy_tgid": (72, 4),
    "generation": (76, 4),
    "deputy_start_ticks": (80, 8),
    "kept": (88, 4),
    "guard_births": (92, 4),
}
SIZE = 96


@pytest.fixture
def bss() -> Iterator[maps.Map]:
    try:
        made = maps.create(
            bpf_abi.BPF_MAP_TYPE_ARRAY, 4, SIZE, 1, name="bss", flags=bpf_abi.BPF_F_MMAPABLE
        )
    except KernelError as e:
        if os.geteuid() == 0:
            raise
        pytest.skip(f"no maps can be made here: {e}")
    with made:
        yield made


def _value(bss: maps.Map) -> bytes:
    found = bss.lookup(0)
    assert isinstance(found, bytes)
    return found


@pytest.mark.kernel
def test_stores_reach_the_map(bss: maps.Map) -> None:
    with guard.Globals(bss.fileno(), SIZE, PLACES) as values:
        values.set("armed", 1)
        values.set("owner_start_ticks", 1 << 40)
        values.set_ids("guard_link_ids", [7, 8])
    raw = _value(bss)
    assert struct.unpack_from("=I", raw, 0) == (1,)
    assert struct.unpack_from("=Q", raw, 16) == (1 << 40,)
    assert struct.unpack_from("=4I", raw, 56) == (7, 8, 0, 0)
    with guard.Globals(bss.fileno(), SIZE, PLACES) as values:
        assert values.get("armed") == 1
        assert values.ids("guard_link_ids") == [7, 8]
        values.set_ids("guard_link_ids", [9])
        assert values.ids("guard_link_ids") == [9]


@pytest.mark.kernel
def test_nothing_stays_mapped(bss: maps.Map) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with guard.Globals(bss.fileno(), SIZE, PLACES) as values:
        values.set("armed", 1)
        assert "bpf-map" in Path("/proc/self/maps").read_text()
    assert "bpf-map" not in Path("/proc/self/maps").read_text()
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.kernel
def test_more_ids_than_fit_are_refused_and_change_nothing(bss: maps.Map) -> None:
    with (
        guard.Globals(bss.fileno(), SIZE, PLACES) as values,
        pytest.raises(RestrictError, match="room for 4"),
    ):
        values.set_ids("guard_map_ids", [1, 2, 3, 4, 5])
    assert _value(bss) == bytes(SIZE)


def test_places_beyond_the_map_are_refused() -> None:
    with pytest.raises(RestrictError, match="beyond"):
        guard.Globals(0, 60, PLACES)


@pytest.mark.parametrize(
    ("name", "offset", "size"), [("armed", 2, 4), ("armed", 0, 8), ("guard_map_ids", 0, 6)]
)
def test_places_that_one_store_cannot_reach_are_refused(name: str, offset: int, size: int) -> None:
    with pytest.raises(RestrictError, match=name):
        guard.check_place(name, offset, size, guard.GLOBALS[name])


def test_offsets_come_from_the_plan() -> None:
    variables = {name: (".bss", *place, None) for name, place in PLACES.items()}
    assert guard.offsets_of(variables) == PLACES
    with pytest.raises(RestrictError, match="no variable 'audit'"):
        guard.offsets_of({n: v for n, v in variables.items() if n != "audit"})
    with pytest.raises(RestrictError, match=r"not in \.bss"):
        guard.offsets_of({**variables, "armed": (".data", 0, 4, None)})


def test_start_ticks_of_a_name_with_parentheses(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = tmp_path / "a) (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen(
        [str(program), "-c", "print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "up\n"
        assert ") (b)" in Path(f"/proc/{child.pid}/stat").read_text()
        ticks = guard.start_ticks(child.pid)
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        assert 0 <= uptime - ticks / os.sysconf("SC_CLK_TCK") < 30
        child.stdin.close()


def test_of_whom_there_is_no_time() -> None:
    assert guard.ticks_of(1) == 0
    assert guard.ticks_of(os.getpid()) == guard.start_ticks()
    for pid in ((1 << 22) + 1, 0, -5):
        with pytest.raises(RestrictError, match=f"no process {pid}"):
            guard.ticks_of(pid)
