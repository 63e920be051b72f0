# SPDX-License-Identifier: BSD-2-Clause
"""Which documented rule of BPF_MAP_CREATE a refused request breaks. Imported after a failure.

Each rule is checked against the request itself; the kernel function it stands in is named.
"""

from __future__ import annotations

import errno
import mmap

from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.kernel.map import Map

__all__ = ["element_hint", "hint"]

_ARRAYS = (
    abi.BPF_MAP_TYPE_ARRAY, abi.BPF_MAP_TYPE_PERCPU_ARRAY, abi.BPF_MAP_TYPE_PROG_ARRAY,
    abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY, abi.BPF_MAP_TYPE_CGROUP_ARRAY,
    abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_DEVMAP, abi.BPF_MAP_TYPE_CPUMAP,
)  # fmt: skip
_HASHES = (
    abi.BPF_MAP_TYPE_HASH, abi.BPF_MAP_TYPE_PERCPU_HASH, abi.BPF_MAP_TYPE_LRU_HASH,
    abi.BPF_MAP_TYPE_LRU_PERCPU_HASH, abi.BPF_MAP_TYPE_HASH_OF_MAPS,
)  # fmt: skip
_STORAGE = (
    abi.BPF_MAP_TYPE_SK_STORAGE, abi.BPF_MAP_TYPE_INODE_STORAGE, abi.BPF_MAP_TYPE_TASK_STORAGE,
    abi.BPF_MAP_TYPE_CGRP_STORAGE,
)  # fmt: skip
_OF_MAPS = (abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_HASH_OF_MAPS)
# Further types with the keys of an array.
_SLOTS = (abi.BPF_MAP_TYPE_SOCKMAP, abi.BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, abi.BPF_MAP_TYPE_XSKMAP)
_FIXED = (abi.BPF_MAP_TYPE_ARRAY, abi.BPF_MAP_TYPE_PERCPU_ARRAY)
_RINGS = (abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF)


def hint(
    code: int, map_type: int, key: int, value: int, entries: int, more: dict[str, Any]
) -> str | None:
    """One sentence, or None where no rule that is known here is broken."""
    if code == errno.E2BIG and value > 1 << 22:
        return f"A value of {value} bytes is more than the kernel gives one element."
    if code not in (errno.EINVAL, 524):
        return None
    if map_type in _RINGS:
        if key or value:
            return "A ring buffer has key_size and value_size 0 (ringbuf_map_alloc)."
        if entries < mmap.PAGESIZE or entries & entries - 1:
            return (
                f"A ring buffer's max_entries is its size in bytes, a power of two and a multiple "
                f"of {mmap.PAGESIZE}; {entries} is not (ringbuf_map_alloc)."
            )
        return None
    if map_type in _STORAGE:
        if entries:
            return "A local storage map has max_entries 0 (bpf_local_storage_map_alloc_check)."
        if not more.get("flags", 0) & abi.BPF_F_NO_PREALLOC:
            return "A local storage map needs BPF_F_NO_PREALLOC."
        if not more.get("btf_fd"):
            return "A local storage map needs BTF of its key and value."
        return None
    if not entries and map_type != abi.BPF_MAP_TYPE_STRUCT_OPS:
        return "max_entries is 0."
    if map_type in _ARRAYS and key != 4:
        return f"The keys of this map type have 4 bytes, not {key} (array_map_alloc_check)."
    if map_type not in _ARRAYS and not value:
        return "value_size is 0."
    if map_type in _HASHES and not key:
        return "key_size is 0."
    if map_type == abi.BPF_MAP_TYPE_LPM_TRIE and not more.get("flags", 0) & abi.BPF_F_NO_PREALLOC:
        return "An LPM trie needs BPF_F_NO_PREALLOC (trie_alloc)."
    return _unknown_type(map_type)


def element_hint(found: Map, call: str, code: int, flags: int = 0) -> str | None:
    """One sentence on a refused operation on an element, or None."""
    kind, most = found.type, found.max_entries
    changes = call in ("BPF_MAP_UPDATE_ELEM", "BPF_MAP_UPDATE_BATCH")
    if code == errno.E2BIG and changes:
        if kind in _ARRAYS or kind in _SLOTS:
            return f"Its keys are the numbers from 0 to {most - 1}."
        return f"It is full: max_entries is {most}."
    if code == errno.EPERM and frozen(found.fileno()):
        return "The map is frozen: only programs change it, if anybody."
    if code == errno.EINVAL and call == "BPF_MAP_DELETE_ELEM" and kind in _FIXED:
        return "The elements of an array stay; store zeros instead."
    if code == errno.EINVAL and changes and not flags:
        if kind in _OF_MAPS:
            return (
                "A map of maps takes maps with the type, key_size, value_size and flags of the one "
                "it was made with; inner arrays have its max_entries, too."
            )
        if kind == abi.BPF_MAP_TYPE_PROG_ARRAY:
            return (
                "All programs of a program array have one type, and agree in what they were loaded "
                "for (bpf_prog_map_compatible)."
            )
    if code == errno.EEXIST and flags & abi.BPF_NOEXIST:
        return "The key is there, and BPF_NOEXIST asks for a new one."
    if code == errno.ENOENT and flags & abi.BPF_EXIST:
        return "The key is not there, and BPF_EXIST asks for one that is."
    if kind in _STORAGE and code == 524:
        return "A local storage map has an element for each task, socket …: it cannot be listed."
    return None


def frozen(fd: int) -> bool:
    """Whether a map is frozen, as its fdinfo says (5.2)."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return "frozen:\t1" in file.read()
    except OSError:
        return False


def _unknown_type(map_type: int) -> str | None:
    """Whether the kernel is older than the map type, tried with the type's simplest shape."""
    from pybpf.kernel import features

    found = features.map_type(map_type)
    if found is False:
        return features.requires_map_type(map_type)
    return None
