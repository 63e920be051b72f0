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
from restrict.guard import start_ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from restrict.status import Status

__all__ = [
    "METHODS",
    "Exec",
    "Keeper",
    "Method",
    "Ownerless",
    "Pins",
    "Process",
    "State",
    "by_number",
    "describe",
    "is_alive",
    "method",
    "names",
    "strongest",
]


class State:
    """What a method may look at to tell what could remove the policy.

    owner: its tgid (0: none). owner_alive: whether that very process is still there.
    guarded: whether an armed pins policy covers the file system of the pins.
    """

    __slots__ = ("deputy", "guarded", "owner", "owner_alive")

    def __init__(
        self, owner: int, owner_alive: bool, *, deputy: int = 0, guarded: bool = False
    ) -> None:
        self.owner = owner
        self.owner_alive = owner_alive
        self.deputy = deputy
        self.guarded = guarded

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


class Method:
    """One way of keeping. where: the commands that offer it, "enable" and "init"."""

    name = ""
    number = -1
    holds = ""
    where: tuple[str, ...] = ("enable", "init")

    def refuses(self) -> str | None:
        """Why it cannot be used here and now; None if it can."""
        return None

    def removers(self, state: State) -> list[str]:
        """What could end it before the next boot, one phrase each."""
        raise NotImplementedError


class Process(Method):
    """The owner's file descriptors: what `restrict enable --keep process` leaves open."""

    name = "process"
    number = 0
    holds = "file descriptors of its owner"
    where = ("enable",)

    def removers(self, state: State) -> list[str]:
        if state.owner == 1:
            return ["PID 1, its owner, or a successor that closes fds it does not know"]
        return [f"the end of process {state.owner}, which root can kill"]


class Pins(Method):
    """Links pinned in a bpf filesystem, with the pins policy over it."""

    name = "pins"
    number = 2
    holds = "pins in a bpf filesystem"

    def refuses(self) -> str | None:
        with open("/proc/filesystems", encoding="ascii", errors="replace") as file:
            if not any(line.split()[-1] == "bpf" for line in file):
                return "the kernel has no bpf filesystem"
        from restrict.pins import default_plan

        path = default_plan()
        if not os.path.exists(path):
            return f"there is no plan of the pins policy, {path}"
        return None

    def removers(self, state: State) -> list[str]:
        found = state.owners()
        if not state.guarded:
            found.append("root, who can unlink the pins or unmount their filesystem")
        return found


class Ownerless(Method):
    """Programs on the root cgroup itself (restrict/keep_ownerless.py)."""

    name = "ownerless"
    number = 3
    holds = "the root of the cgroup2 hierarchy, on which the programs themselves are"
    where = ("init",)

    def refuses(self) -> str | None:
        # No smaller question shows whether a program may read the signature that a device's
        # report carries (kernel commit of 6.16); loading it does, and it is not loaded here.
        major, _, rest = os.uname().release.partition(".")
        minor = rest.partition(".")[0].partition("-")[0]
        if not major.isdigit() or not minor.isdigit() or (int(major), int(minor)) < (6, 16):
            return "it needs Linux 6.16"
        return None

    def removers(self, state: State) -> list[str]:
        return state.owners()


class Exec(Method):
    """Descriptors that each PID 1 hands to the next (restrict/handover.py)."""

    name = "exec"
    number = 1
    holds = "file descriptors that PID 1 was executed with"
    where = ("init",)

    def removers(self, state: State) -> list[str]:
        return ["PID 1, its owner, or a successor that closes fds it does not know (systemd does)"]


class Keeper(Method):
    """A process that does nothing else (restrict/keep_keeper.py)."""

    name = "keeper"
    number = 4
    holds = "file descriptors of a process that does nothing else"
    where = ("init",)

    def removers(self, state: State) -> list[str]:
        return [
            f"the end of process {state.owner}: signals are refused, but not what the kernel does "
            "for root (cgroup.kill)"
        ]


METHODS: tuple[Method, ...] = (Ownerless(), Pins(), Exec(), Process(), Keeper())


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


def is_alive(tgid: int, ticks: int) -> bool:
    """Whether the process that started then is still there."""
    try:
        return tgid == 1 or (tgid > 0 and start_ticks(tgid) == ticks)
    except (OSError, ValueError):
        return False


def describe(status: Status, path: str) -> dict[str, object]:
    """{method, holds, guarded, removers} of a policy whose status is at ``path``."""
    from restrict import pins_status

    try:
        guarded = pins_status.guarded(path)
    except (PybpfError, OSError):  # what cannot be told is not relied on
        guarded = False
    found = by_number(status.kept)
    state = State(
        status.owner,
        is_alive(status.owner, status.owner_start_ticks),
        deputy=status.deputy if is_alive(status.deputy, status.deputy_start_ticks) else 0,
        guarded=guarded,
    )
    return {
        "method": found.name if found is not None else f"method {status.kept}",
        "holds": found.holds if found is not None else None,
        "guarded": guarded,
        "removers": found.removers(state) if found is not None else None,
    }
