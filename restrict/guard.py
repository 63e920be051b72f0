# SPDX-License-Identifier: BSD-2-Clause
"""The globals of a policy: the guard's ids, the switch, the trust window.

They are the .bss map of the object. It is mapped into memory only for the moment of a store and
unmapped at once: what stays mapped can be found and written through /proc/PID/mem.
"""

from __future__ import annotations

import mmap
import os
import struct

from restrict.errors import RestrictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["COMMON", "GLOBALS", "Globals", "is_alive", "offsets_of", "start_ticks", "ticks_of"]

# name → size of one element; arrays are told by the Plan's size of the variable.
GLOBALS = {
    "armed": 4,
    "audit": 4,
    "initramfs_dev": 4,
    "owner_tgid": 4,
    "owner_start_ticks": 8,
    "deputy_tgid": 4,
    "deputy_start_ticks": 8,
    "generation": 4,
    "kept": 4,
    "guard_births": 4,
    "guard_map_ids": 4,
    "guard_program_ids": 4,
    "guard_link_ids": 4,
}
# Those that every policy has (bpf/common/state.h).
COMMON = {
    name: width for name, width in GLOBALS.items() if name not in ("initramfs_dev", "guard_births")
}


def offsets_of(
    variables: Mapping[str, tuple[object, ...]], names: Mapping[str, int] = GLOBALS
) -> dict[str, tuple[int, int]]:
    """{name: (offset, size)} of the globals in .bss, from a Plan's ``variables``.

    names: those of the policy, with the size of an element; fsaccess' unless told otherwise.
    """
    found = {}
    for name, width in names.items():
        if name not in variables:
            raise RestrictError(f"the plan has no variable {name!r}; it is of another policy.")
        where, offset, size = variables[name][:3]
        if not isinstance(offset, int) or not isinstance(size, int) or where != ".bss":
            raise RestrictError(f"the variable {name!r} of the plan is not in .bss.")
        found[name] = (offset, size)
        check_place(name, offset, size, width)
    return found


def check_place(name: str, offset: int, size: int, width: int) -> None:
    """Refuse a place that one aligned store of ``width`` bytes cannot reach."""
    whole = size > 0 and size % width == 0 if name.endswith("_ids") else size == width
    if not whole or offset < 0 or offset % width:
        raise RestrictError(
            f"the variable {name!r} has {size} bytes at {offset}, not elements of {width}."
        )


def start_ticks(pid: int | str = "self") -> int:
    """When a process started, in clock ticks since boot: field 22 of /proc/PID/stat.

    It does not change across exec, and tells a process from a later one of the same number.
    """
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    # The second field is the program's name in parentheses and may hold anything.
    return int(text[text.rindex(")") + 2 :].split()[19])


def ticks_of(pid: int) -> int:
    """``start_ticks`` of a process that is to be an owner or deputy, as the guard has it: 0 for
    process 1, which no other can follow. Raises RestrictError if there is no such process."""
    if pid == 1:
        return 0
    try:
        return start_ticks(pid)
    except OSError:
        raise RestrictError(
            f"there is no process {pid}.", process=pid, hint="Give the number of a live one."
        ) from None


def is_alive(pid: int, ticks: int) -> bool:
    """Whether the process that started then (``ticks_of``) is still there; 0 is none."""
    try:
        return pid == 1 or (pid > 0 and start_ticks(pid) == ticks)
    except (OSError, ValueError):
        return False


class Globals:
    """The .bss map in memory, inside a ``with`` block only."""

    __slots__ = ("_fd", "_memory", "_places", "_size")

    def __init__(self, fd: int, size: int, places: Mapping[str, tuple[int, int]]) -> None:
        for name, (offset, length) in places.items():
            if offset + length > size:
                raise RestrictError(f"the variable {name!r} lies beyond the map's {size} bytes.")
        self._fd = fd
        self._size = size
        self._places = places
        self._memory: mmap.mmap | None = None

    def __enter__(self) -> Self:
        try:
            self._memory = mmap.mmap(
                self._fd, self._size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
            )
        except OSError as e:
            raise RestrictError(
                f"the map of the globals cannot be mapped: {os.strerror(e.errno or 0)}.",
                map=".bss",
            ) from None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _mapped(self) -> mmap.mmap:
        assert self._memory is not None, "used outside of its with block"
        return self._memory

    def get(self, name: str) -> int:
        """A scalar."""
        offset, size = self._places[name]
        return int(struct.unpack_from("=I" if size == 4 else "=Q", self._mapped(), offset)[0])

    def ids(self, name: str) -> list[int]:
        """The used entries of an array of ids."""
        offset, size = self._places[name]
        return [n for n in struct.unpack_from(f"={size // 4}I", self._mapped(), offset) if n]

    def set(self, name: str, value: int) -> None:
        """Store a scalar by one aligned store, so that programs see the old or the new value."""
        offset, size = self._places[name]
        self._store(offset, size, value)

    def set_ids(self, name: str, ids: list[int]) -> None:
        """Fill an array of ids; unused entries become 0. Refuses more than fit."""
        offset, size = self._places[name]
        room = size // 4
        if len(ids) > room:
            raise RestrictError(f"{name} has room for {room} ids, {len(ids)} are needed.")
        for i, ident in enumerate([*ids, *[0] * (room - len(ids))]):
            self._store(offset + 4 * i, 4, ident)

    def _store(self, offset: int, size: int, value: int) -> None:
        # An item of a cast memoryview is written by one machine store, what struct packs byte by
        # byte. The views end here: a mapping with live ones cannot be unmapped.
        with (
            memoryview(self._mapped()) as whole,
            whole[offset : offset + size] as place,
            place.cast("I" if size == 4 else "Q") as cell,
        ):
            cell[0] = value
