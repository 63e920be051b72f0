# SPDX-License-Identifier: BSD-2-Clause
"""The ways in which fsaccess stays attached, and what each leaves open.

A method is a name for ``--keep``, a number that the status prints (``kept N``, enum policy_keep in
bpf/include/policy.h), what holds the links, and what could still remove them. ``METHODS`` has them
strongest first; a module that brings another adds it there.

Reboot ends every one of them, and so does whoever can write the kernel's memory.
"""

from __future__ import annotations

import os

from pybpf.errors import PybpfError
from restrict import abi
from restrict.guard import is_alive
from restrict.policy import default_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from restrict.status import Status

__all__ = [
    "METHODS",
    "Method",
    "State",
    "by_number",
    "describe",
    "method",
    "names",
    "strongest",
]


class State:
    """What a method may look at to tell what could remove the policy.

    owner: its tgid (0: none). owner_alive: whether that very process is still there. deputy: the
    same of one that is there. guardians: live owner and deputy of the armed pins policy that covers
    the filesystem of the pins; None if there is no such policy.
    """

    __slots__ = ("deputy", "guardians", "owner", "owner_alive")

    def __init__(
        self,
        owner: int,
        owner_alive: bool,
        *,
        deputy: int = 0,
        guardians: Sequence[int] | None = None,
    ) -> None:
        self.owner = owner
        self.owner_alive = owner_alive
        self.deputy = deputy
        self.guardians = guardians

    def owners(self) -> list[str]:
        """Sentences on the owner and its deputy, for methods that these can end."""
        found = []
        if self.owner == 1:
            found.append("PID 1, its owner")
        elif self.owner and self.owner_alive:
            found.append(f"process {self.owner}, its owner")
        if self.deputy:
            found.append(f"process {self.deputy}, the owner's deputy")
        return found


def _here() -> None:
    return None


class Method:
    """One way of keeping.

    name, number: of ``--keep`` and ``keep =``; its place in abi.KEPT_BY. holds: what holds the
    links. removers: what could end it before the next boot, one phrase each, by the State.
    where: the commands that offer it, "enable" and "init". refuses: why it cannot be used here and
    now; None if it can.
    """

    __slots__ = ("holds", "name", "number", "refuses", "removers", "where")

    def __init__(
        self,
        name: str,
        holds: str,
        removers: Callable[[State], list[str]],
        *,
        where: tuple[str, ...] = ("enable", "init"),
        refuses: Callable[[], str | None] = _here,
    ) -> None:
        self.name = name
        self.number = abi.KEPT_BY.index(name)
        self.holds = holds
        self.removers = removers
        self.where = where
        self.refuses = refuses


def _pins_refuse() -> str | None:
    with open("/proc/filesystems", encoding="ascii", errors="replace") as file:
        if not any(line.split()[-1] == "bpf" for line in file):
            return "the kernel has no bpf filesystem"
    path = default_plan("pins")
    if not os.path.exists(path):
        return f"there is no plan of the pins policy, {path}"
    return None


def _pins_removers(state: State) -> list[str]:
    found = state.owners()
    if state.guardians is None:
        return [*found, "root, who can unlink the pins or unmount their filesystem"]
    others = [pid for pid in state.guardians if pid not in (state.owner, state.deputy)]
    return [*found, *(f"process {pid}, who owns the pins policy over it" for pid in others)]


def _ownerless_refuse() -> str | None:
    # No smaller question shows whether a program may read the signature that a device's report
    # carries (kernel commit of 6.16); loading it does, and it is not loaded here.
    release = os.uname().release
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    if not major.isdigit() or not minor.isdigit() or (int(major), int(minor)) < (6, 16):
        return f"it needs Linux 6.16, and this is {release}"
    return None


def _process_removers(state: State) -> list[str]:
    # Its owner, unless it was enabled for another: who holds fds is told nowhere.
    return [*state.owners(), "the end of the process that enabled it, which root can kill"]


def _exec_removers(state: State) -> list[str]:
    return ["PID 1, its owner, or a successor that closes fds it does not know (systemd does)"]


def _keeper_removers(state: State) -> list[str]:
    return [
        f"the end of process {state.owner}: signals are refused, but not what the kernel does "
        "for root (cgroup.kill)"
    ]


# Both of the first two can be ended by nobody. Pins come before ownerless because nothing of the
# policy is missing there (restrict/BOOT.md has the three points) and an owner may upgrade it.
METHODS = (
    Method("pins", "pins in a bpf filesystem", _pins_removers, refuses=_pins_refuse),
    Method(
        "ownerless", "the root of the cgroup2 hierarchy, on which the programs themselves are",
        State.owners, refuses=_ownerless_refuse,
    ),
    Method(
        "exec", "file descriptors that PID 1 was executed with", _exec_removers,
        where=("init",),
    ),
    Method(
        "process", "file descriptors of the process that enabled it", _process_removers,
        where=("enable",),
    ),
    Method(
        "keeper", "file descriptors of a process that does nothing else", _keeper_removers,
        where=("init",),
    ),
)  # fmt: skip


def method(name: str) -> Method:
    """The method of that name; KeyError for none."""
    return {found.name: found for found in METHODS}[name]


def by_number(number: int) -> Method | None:
    """The method that the status names; None for one of a newer version."""
    for found in METHODS:
        if found.number == number:
            return found
    return None


def names(command: str) -> tuple[str, ...]:
    """The methods that a command offers, strongest first."""
    return tuple(found.name for found in METHODS if command in found.where)


def strongest(command: str = "enable") -> Method:
    """The first method that this kernel allows to a command."""
    for found in METHODS:
        if command in found.where and found.refuses() is None:
            return found
    raise AssertionError("a process can always keep it")


def describe(status: Status, path: str) -> dict[str, object]:
    """{method, holds, guarded, removers} of a policy whose status is at ``path``."""
    from restrict import pins_status

    guardians: list[int] | None = None
    try:
        pins = pins_status.guardian(path)
        if pins is not None:
            who = ((pins.owner, pins.owner_alive), (pins.deputy, pins.deputy_alive))
            guardians = [pid for pid, alive in who if alive]
    except (PybpfError, OSError):  # what cannot be told is not relied on
        pass
    found = by_number(status.kept)
    state = State(
        status.owner,
        is_alive(status.owner, status.owner_start_ticks),
        deputy=status.deputy if is_alive(status.deputy, status.deputy_start_ticks) else 0,
        guardians=guardians,
    )
    return {
        "method": found.name if found is not None else f"method {status.kept}",
        "holds": found.holds if found is not None else None,
        "guarded": guardians is not None,
        "removers": found.removers(state) if found is not None else None,
    }
