# SPDX-License-Identifier: BSD-2-Clause
"""Maps of every common type, on this machine's kernel."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pybpf.errors import KernelError, UsageError
from pybpf.kernel.cpus import possible_cpus
from pybpf.kernel.map import Map, create
from pybpf.sys import abi, bpf
from tests.kernel.helpers import ARRAY, HASH

pytestmark = pytest.mark.kernel

U32 = ("int", 4, False)
POINT = ("struct", 8, (("x", 0, ("int", 4, True)), ("y", 4, ("int", 4, True))))


def test_a_hash_map_is_a_dict(prefix: str) -> None:
    with create(HASH, 4, 8, 4, name=f"{prefix}_h", key_layout=U32, value_layout=POINT) as m:
        m[7] = {"x": -1, "y": 2}
        m[8] = {"x": 5}
        assert m[7] == {"x": -1, "y": 2}
        assert sorted(m) == [7, 8]
        assert dict(m.items())[8] == {"x": 5, "y": 0}
        assert 9 not in m
        assert m.lookup(9, "none") == "none"
        with pytest.raises(KeyError):
            m[9]
        with pytest.raises(KernelError) as caught:
            m.update(7, {"x": 0}, abi.BPF_NOEXIST)
        assert caught.value.errno == 17
        assert caught.value.where["map"] == f"{prefix}_h"
        del m[7]
        assert not m.delete(7)
        with pytest.raises(KeyError):
            del m[7]
        assert m.pop(8) == {"x": 5, "y": 0}
        assert list(m) == []


def test_a_full_map_says_so(prefix: str) -> None:
    with create(HASH, 4, 4, 2, name=f"{prefix}_h") as m:
        m[1] = 1
        m[2] = 2
        with pytest.raises(KernelError, match="E2BIG") as caught:
            m[3] = 3
        assert caught.value.call == "BPF_MAP_UPDATE_ELEM"
        m.clear()
        assert list(m.keys()) == []


def test_bytes_and_ints_without_layout(prefix: str) -> None:
    with create(ARRAY, 4, 3, 2, name=f"{prefix}_a") as m:
        m[1] = b"abc"
        assert m[1] == b"abc"
        assert m[0] == bytes(3)
        with pytest.raises(UsageError, match="2 bytes given where 3"):
            m[0] = b"ab"
        with pytest.raises(UsageError, match="bytes are needed, not int"):
            m[0] = 5
        with pytest.raises(UsageError, match="does not fit"):
            m[1 << 40] = b"abc"
        with pytest.raises(KernelError):
            m.delete(0)  # elements of arrays stay


def test_per_cpu_values_are_lists(prefix: str) -> None:
    cpus = possible_cpus()
    with create(
        abi.BPF_MAP_TYPE_PERCPU_ARRAY, 4, 4, 2, name=f"{prefix}_p", value_layout=U32
    ) as m:
        m[0] = 9
        m[1] = list(range(cpus))
        assert m[0] == [9] * cpus
        assert m[1] == list(range(cpus))
        assert dict(m.items()) == {0: [9] * cpus, 1: list(range(cpus))}
        with pytest.raises(UsageError, match="items, not"):
            m[1] = [1] * (cpus + 1)


def test_batches(prefix: str) -> None:
    with create(HASH, 4, 4, 1000, name=f"{prefix}_h", key_layout=U32, value_layout=U32) as m:
        assert m.update_batch((i, i * i) for i in range(700)) == 700
        assert dict(m.lookup_batch()) == {i: i * i for i in range(700)}
        assert m.delete_batch([1, 2, 3]) == 3
        with pytest.raises(KernelError) as caught:
            m.delete_batch([4, 1])
        assert caught.value.errno == 2
        assert caught.value.where["count"] == 1
        assert len(dict(m.lookup_batch(delete=True))) == 696
        assert list(m.lookup_batch()) == []
        assert m.update_batch([]) == 0


def test_batches_of_per_cpu_maps(prefix: str) -> None:
    cpus = possible_cpus()
    with create(
        abi.BPF_MAP_TYPE_PERCPU_HASH, 4, 8, 16, name=f"{prefix}_p", key_layout=U32
    ) as m:
        m[3] = [struct.pack("=Q", 10 + i) for i in range(cpus)]
        assert dict(m.lookup_batch()) == {3: [struct.pack("=Q", 10 + i) for i in range(cpus)]}


def test_queue_and_stack(prefix: str) -> None:
    with create(abi.BPF_MAP_TYPE_QUEUE, 0, 4, 4, name=f"{prefix}_q") as m:
        m.update(None, 1)
        m.update(None, 2)
        assert m.lookup(None) == b"\1\0\0\0"
        assert m.pop() == b"\1\0\0\0"
        assert m.pop() == b"\2\0\0\0"
        assert m.pop() is None


def test_an_lpm_trie(prefix: str) -> None:
    with create(
        abi.BPF_MAP_TYPE_LPM_TRIE, 8, 4, 4, name=f"{prefix}_l", flags=abi.BPF_F_NO_PREALLOC
    ) as m:
        m[struct.pack("=I4B", 8, 10, 0, 0, 0)] = 1
        m[struct.pack("=I4B", 16, 10, 1, 0, 0)] = 2
        assert m[struct.pack("=I4B", 32, 10, 1, 9, 9)] == b"\2\0\0\0"
        assert m[struct.pack("=I4B", 32, 10, 2, 9, 9)] == b"\1\0\0\0"


def test_freeze_ends_writing(prefix: str) -> None:
    with create(ARRAY, 4, 8, 1, name=f"{prefix}_f", flags=abi.BPF_F_MMAPABLE) as m:
        view = m.mmap()
        with pytest.raises(KernelError, match="EBUSY"):
            m.freeze()
        view.close()
        m.freeze()
        with pytest.raises(KernelError, match="EPERM"):
            m[0] = 1
        with pytest.raises(KernelError):
            m.mmap(writable=True)
        read = m.mmap(writable=False)
        assert read[:8] == bytes(8)
        read.close()


def test_mapping_into_memory(prefix: str) -> None:
    with create(ARRAY, 4, 12, 3, name=f"{prefix}_m", flags=abi.BPF_F_MMAPABLE) as m:
        view = m.mmap()
        m[2] = b"abcdefghijkl"
        assert view[32:44] == b"abcdefghijkl"  # elements are 16 bytes apart
        view[0:4] = b"wxyz"
        assert m[0] == b"wxyz" + bytes(8)
        view.close()
    with create(ARRAY, 4, 8, 1, name=f"{prefix}_n") as m, pytest.raises(
        KernelError, match="BPF_F_MMAPABLE"
    ):
        m.mmap()


def test_information(prefix: str) -> None:
    with create(HASH, 4, 8, 16, name=f"{prefix}_i", flags=abi.BPF_F_NO_PREALLOC) as m:
        info = m.info()
        wanted = {
            "type": 1, "key_size": 4, "value_size": 8, "max_entries": 16, "map_flags": 1,
            "name": f"{prefix}_i",
        }  # fmt: skip
        assert wanted.items() <= info.items()
        with Map.from_id(m.id) as other:
            assert (other.type, other.key_size, other.value_size) == (1, 4, 8)
            assert (other.max_entries, other.flags, other.name) == (16, 1, f"{prefix}_i")
            other[1] = 5
            assert m[1] == struct.pack("=Q", 5)
        with Map.from_id(m.id, flags=abi.BPF_F_RDONLY) as reader:
            assert reader[1] == struct.pack("=Q", 5)
            with pytest.raises(KernelError, match="EPERM"):
                reader[1] = 6


def test_names_are_made_fit(prefix: str) -> None:
    with (
        create(ARRAY, 4, 4, 1, name=f"{prefix}-ümlaut-and-longer") as m,
        Map.from_id(m.id) as other,
    ):
        # UTF-8 of ü has two bytes, 15 bytes are kept
        assert other.name == f"{prefix}___mlaut-".replace("-", "_")[:15]


def test_pins(prefix: str, bpffs: Path) -> None:
    with create(ARRAY, 4, 4, 1, name=f"{prefix}_p") as m:
        m[0] = 77
        m.pin(str(bpffs / "here"))
        with pytest.raises(KernelError, match="EEXIST"):
            m.pin(str(bpffs / "here"))
        with pytest.raises(KernelError, match="no dots"):
            m.pin(str(bpffs / "a.b"))
        with pytest.raises(KernelError, match="no directory"):
            m.pin(str(bpffs / "no" / "a"))
        with pytest.raises(KernelError, match="need a filesystem of type bpf"):
            m.pin("/tmp/pybpf_pin")
    with Map.from_pin(str(bpffs / "here")) as again:
        assert again[0] == struct.pack("=I", 77)
    os.unlink(bpffs / "here")
    with pytest.raises(KernelError, match="ENOENT"):
        Map.from_pin(str(bpffs / "here"))


def test_fds(prefix: str) -> None:
    m = create(ARRAY, 4, 4, 1, name=f"{prefix}_d")
    assert not os.get_inheritable(m.fileno())
    second = m.dup(inheritable=True)
    assert os.get_inheritable(second)
    fd = m.detach_fd()
    with pytest.raises(UsageError, match="closed"):
        m.fileno()
    m.close()
    os.close(second)
    again = Map.from_fd(fd)
    assert again.name == f"{prefix}_d"
    again.close()
    again.close()
    with open("/dev/null") as null, pytest.raises(UsageError, match="not a BPF map"):
        Map.from_fd(null.fileno())


def test_an_fd_of_a_standard_stream_is_moved(prefix: str) -> None:
    """A process without standard input gets fd 0 for its first map: 0 means none in bpf_attr."""
    saved = os.dup(0)
    os.close(0)
    try:
        with create(ARRAY, 4, 4, 1, name=f"{prefix}_z") as m:
            assert m.fileno() > 2
            assert not os.get_inheritable(m.fileno())
            with pytest.raises(OSError):
                os.fstat(0)
    finally:
        os.dup2(saved, 0)
        os.close(saved)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((abi.BPF_MAP_TYPE_RINGBUF, 0, 0, 5000), "power of two"),
        ((abi.BPF_MAP_TYPE_RINGBUF, 4, 0, 4096), "key_size and value_size 0"),
        ((ARRAY, 8, 4, 1), "keys of this map type have 4 bytes, not 8"),
        ((HASH, 4, 4, 0), "max_entries is 0"),
        ((abi.BPF_MAP_TYPE_LPM_TRIE, 8, 4, 1), "BPF_F_NO_PREALLOC"),
        ((999, 4, 4, 1), "There is no map type 999"),
    ],
)
def test_a_refused_map_names_the_broken_rule(
    shape: tuple[int, int, int, int], sentence: str
) -> None:
    with pytest.raises(KernelError) as caught:
        create(*shape, name="refused")
    assert sentence in str(caught.value)
    assert caught.value.where["map"] == "refused"
    assert caught.value.call == "BPF_MAP_CREATE"


def test_many_keys_than_one_bucket(prefix: str) -> None:
    with create(HASH, 8, 8, 5000, name=f"{prefix}_b") as m:
        m.update_batch((i, i) for i in range(5000))
        assert sum(1 for _ in m.lookup_batch()) == 5000
        assert sum(1 for _ in m) == 5000
        assert bpf.map_lookup(m.fd, struct.pack("=Q", 4999), bytearray(8))


def test_types_without_keys_take_none(prefix: str) -> None:
    with create(abi.BPF_MAP_TYPE_QUEUE, 0, 4, 2, name=f"{prefix}_q", value_layout=U32) as m:
        m.update(None, 5)
        assert m.lookup(None) == m.pop() == 5
        for act in (lambda: m.update(7, 5), lambda: m[0], lambda: m.pop(1), lambda: list(m)):
            with pytest.raises(UsageError, match="have no keys"):
                act()


def test_numbers_that_do_not_fit_are_not_cut() -> None:
    """A field of 32 bits would make 1 of the first, and a map of one entry."""
    for entries in ((1 << 32) + 1, -(1 << 32), "8"):
        with pytest.raises(UsageError, match="max_entries"):
            create(ARRAY, 4, 4, entries)  # type: ignore[arg-type]
    with create(ARRAY, 4, 4, 1) as m, pytest.raises(UsageError, match="flags"):
        m.update(0, 1, flags=-1)
    for ident in (-1, 1 << 32):
        with pytest.raises(UsageError, match="is no id"):
            Map.from_id(ident)


def test_names_with_a_nul(prefix: str, bpffs: Path) -> None:
    """The kernel would take the part before it."""
    with create(ARRAY, 4, 4, 1, name=f"{prefix}_m") as m:
        with pytest.raises(UsageError, match="NUL"):
            m.pin(f"{bpffs}/one\0two")
        m.pin(f"{bpffs}/one")
        with pytest.raises(KernelError, match="EEXIST") as caught:
            m.pin(f"{bpffs}/one")
        assert caught.value.hint is None
        with pytest.raises(UsageError, match="NUL"):
            Map.from_pin(f"{bpffs}/one\0two")
    # The kernel puts two files of its own there.
    assert {p.name for p in bpffs.iterdir()} - {"maps.debug", "progs.debug"} == {"one"}
    (bpffs / "one").unlink()
