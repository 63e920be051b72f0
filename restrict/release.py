# SPDX-License-Identifier: BSD-2-Clause
"""When is what was unpinned really gone?

The last reference to a link is dropped after an RCU grace period (bpffs frees its inodes so), and
until then its program runs on. Whoever ends a policy waits for that, and hears of other holders.

Needs CAP_SYS_ADMIN, which removing pins of a policy needs anyway.
"""

from __future__ import annotations

import time

from pybpf.sys import abi as bpf_abi
from pybpf.sys import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["existing", "wait_released"]

_PAUSE = 0.02  # seconds


def existing(idents: Iterable[int]) -> list[int]:
    """Those of the links' ids that still are: asked by listing, which the guard allows.
    Raises KernelError."""
    return [n for n in idents if bpf.next_id(bpf_abi.BPF_LINK_GET_NEXT_ID, n - 1) == n]


def wait_released(idents: Iterable[int], timeout: float = 5.0) -> list[int]:
    """Wait until no link has one of these ids; the ids that are left after ``timeout`` seconds,
    because somebody else holds them: an fd, another pin. Raises KernelError."""
    left = existing(idents)
    until = time.monotonic() + timeout
    while left and time.monotonic() < until:
        time.sleep(_PAUSE)
        left = existing(left)
    return left
