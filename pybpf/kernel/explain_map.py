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

__all__ = ["hint"]

_ARRAYS = (
    abi.BPF_MAP_TYPE_ARRAY, abi.BPF_MAP_TYPE_PERCPU_ARRAY, abi.BPF_MAP_TYPE_PROG_ARRAY,
    abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY, abi.BPF_MAP_TYPE_CGROUP_ARRAY,
    abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_DEVMAP, abi.BPF_MAP_TYPE_CPUMAP,
)  # fmt: skip
_STORAGE = (
    abi.BPF_MAP_TYPE_SK_STORAGE, abi.BPF_MAP_TYPE_INODE_STORAGE, abi.BPF_MAP_TYPE_TASK_STORAGE,
    abi.BPF_MAP_TYPE_CGRP_STORAGE,
)  # fmt: skip
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
    if map_type == abi.BPF_MAP_TYPE_LPM_TRIE and not more.get("flags", 0) & abi.BPF_F_NO_PREALLOC:
        return "An LPM trie needs BPF_F_NO_PREALLOC (trie_alloc)."
    return _unknown_type(map_type)


def _unknown_type(map_type: int) -> str | None:
    """Whether the kernel is older than the map type, tried with the type's simplest shape."""
    from pybpf.kernel import features

    found = features.map_type(map_type)
    if found is False:
        return features.requires_map_type(map_type)
    return None
