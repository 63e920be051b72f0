# SPDX-License-Identifier: BSD-2-Clause
"""Keys and values of maps that somebody else made, by the BTF that the kernel keeps with them."""

from __future__ import annotations

from pybpf.btf.consts import KIND_DATASEC
from pybpf.btf.layout import layout
from pybpf.btf.model import Btf
from pybpf.errors import FormatError
from pybpf.kernel.btf import BtfObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.kernel.map import Map

__all__ = ["typed"]


def typed(found: Map) -> Map:
    """Give a map that was opened by pin or id the layouts that its BTF describes; returns it.

        with pybpf.typed(pybpf.Map.from_pin("/sys/fs/bpf/events")) as events:
            …

    Keys and values are Python values then, as those of a map that was loaded here. The value of a
    data section (.data, .bss …) is a dict of its variables; to change one, store the whole dict.
    A map without BTF (BPF_MAP_CREATE's btf_fd, 4.18), or whose BTF says other sizes, stays as it
    is. Raises KernelError (an id of BTF is opened: CAP_SYS_ADMIN), FormatError.
    """
    info = found.info()
    if not info.get("btf_id"):
        return found
    with BtfObject.from_id(info["btf_id"]) as kept:
        btf = Btf.parse(kept.data(), name=f"BTF {info['btf_id']}")
    found.key_layout = _layout(btf, info["btf_key_type_id"], found.key_size)
    found.value_layout = _layout(btf, info["btf_value_type_id"], found.value_size)
    return found


def _layout(btf: Btf, type_id: int, size: int) -> tuple[Any, ...] | None:
    if not type_id:
        return None
    try:
        if btf.type(type_id).kind == KIND_DATASEC:
            return ("struct", size, _variables(btf, type_id, size))
        return layout(btf, type_id) if btf.size(type_id) == size else None
    except FormatError:
        return None


def _variables(btf: Btf, type_id: int, size: int) -> tuple[tuple[str, int, Any], ...]:
    """(name, byte offset, layout) of those that have a value and lie inside."""
    out = []
    for entry in btf.type(type_id).variables:
        try:
            if entry.offset + entry.size <= size and btf.size(entry.type) <= entry.size:
                form = layout(btf, entry.type)
                out.append((btf.type(entry.type).name, entry.offset, form))
        except FormatError:
            continue
    return tuple(out)
