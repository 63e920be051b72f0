# SPDX-License-Identifier: BSD-2-Clause
"""Live objects of the kernel: maps, programs, links, BTF; and how to find them by id.

Standard library's smallest modules only: a policy's owner in an initramfs uses this.
"""

from __future__ import annotations

from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["btf_ids", "link_ids", "map_ids", "program_ids"]


def map_ids() -> Iterator[int]:
    """Ids of all maps (4.13). Needs CAP_SYS_ADMIN, as its three sisters do."""
    return _ids(abi.BPF_MAP_GET_NEXT_ID)


def program_ids() -> Iterator[int]:
    """Ids of all programs (4.13)."""
    return _ids(abi.BPF_PROG_GET_NEXT_ID)


def link_ids() -> Iterator[int]:
    """Ids of all links (5.8)."""
    return _ids(abi.BPF_LINK_GET_NEXT_ID)


def btf_ids() -> Iterator[int]:
    """Ids of all BTF objects (5.4)."""
    return _ids(abi.BPF_BTF_GET_NEXT_ID)


def _ids(cmd: int) -> Iterator[int]:
    from pybpf.kernel.object import iterate_ids

    return iterate_ids(cmd)
