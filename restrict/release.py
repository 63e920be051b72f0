# SPDX-License-Identifier: BSD-2-Clause
"""When is what was unpinned really gone?

The last reference to a link is dropped after an RCU grace period (bpffs frees its inodes so), and
its program runs on for longer still: the kernel takes the link's id away first, then detaches, then
lets go of the program (bpf_link_free, kernel/bpf/syscall.c; seen on 6.12). Whoever ends a policy
waits for both ids, and hears of other holders.

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


def existing(idents: Iterable[int], command: int = bpf_abi.BPF_LINK_GET_NEXT_ID) -> list[int]:
    """Those of the links' ids that still are: asked by listing, which the guard allows.
    command: that of another kind of object. Raises KernelError."""
    return [n for n in idents if bpf.next_id(command, n - 1) == n]


def wait_released(
    links: Iterable[int], timeout: float = 5.0, *, programs: Iterable[int] = ()
) -> list[int]:
    """Wait until no link has one of these ids; the ids that are left after ``timeout`` seconds,
    because somebody else holds them: an fd, another pin. Raises KernelError.

    programs: ids of the links' programs. They are waited for, too, so that nothing runs any more
    when this returns; one that somebody else holds only costs the time, it is not attached.
    """
    until = time.monotonic() + timeout
    left = _wait(links, bpf_abi.BPF_LINK_GET_NEXT_ID, until)
    if not left:
        _wait(programs, bpf_abi.BPF_PROG_GET_NEXT_ID, until)
    return left


def _wait(idents: Iterable[int], command: int, until: float) -> list[int]:
    left = existing(idents, command)
    while left and time.monotonic() < until:
        time.sleep(_PAUSE)
        left = existing(left, command)
    return left
