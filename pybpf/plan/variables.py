# SPDX-License-Identifier: BSD-2-Clause
"""Global variables of a live object, by name."""

from __future__ import annotations

import sys

from pybpf.errors import UsageError
from pybpf.kernel import layout as _layout
from pybpf.kernel.map import Map
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from typing import Any, Literal

    from pybpf.plan.ops import Plan

__all__ = ["Variables"]


class Variables:
    """Global variables of a live object by name: ``obj.vars["armed"] = 1``.

    Values are Python values by the variable's layout, bytes where it has none. Where the map can
    be mapped into memory (5.5 and BPF_F_MMAPABLE) a variable of 1, 2, 4 or 8 bytes at an aligned
    place is written with a single store, which a program sees whole or not at all. Elsewhere the
    map's whole value is read, changed and written back: not atomic towards programs.

    ``unmap()`` gives the mappings back; the next access maps again.
    """

    __slots__ = ("_maps", "_plan", "_views")

    # No reference to the Object: a cycle would delay its end until the garbage collector runs.
    def __init__(self, plan: Plan, maps: dict[str, Map]) -> None:
        self._plan = plan
        self._maps = maps
        self._views: dict[str, tuple[mmap.mmap, bool]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._plan.variables

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan.variables)

    def __len__(self) -> int:
        return len(self._plan.variables)

    def keys(self) -> Iterator[str]:
        """The names of all variables."""
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of the variables whose maps were made."""
        for name in self:
            if self._plan.variables[name][0] in self._maps:
                yield name, self[name]

    def _place(self, name: str) -> tuple[Map, str, int, int, Any]:
        variables = self._plan.variables
        if name not in variables:
            raise UsageError(
                f"there is no variable {name!r}; there are: {', '.join(variables)}",
                object=self._plan.name,
            )
        map_name, offset, size, layout = variables[name]
        if map_name not in self._maps:
            raise UsageError(
                f"the map {map_name} of variable {name!r} was not made or is closed",
                object=self._plan.name,
            )
        return self._maps[map_name], map_name, offset, size, layout

    def _view(self, found: Map, name: str) -> mmap.mmap | None:
        """The mapping of a data map, None where it cannot be mapped."""
        found.fileno()
        if name not in self._views:
            if not found.flags & abi.BPF_F_MMAPABLE:
                return None
            writable = not found.flags & abi.BPF_F_RDONLY_PROG
            self._views[name] = found.mmap(writable=writable), writable
        return self._views[name][0]

    def __getitem__(self, name: str) -> Any:
        found, map_name, offset, size, layout = self._place(name)
        view = self._view(found, map_name)
        if view is not None:
            data = _load(view, offset, size)
        else:
            data = _raw(found).lookup(bytes(found.key_size))[offset : offset + size]
        return data if layout is None else _layout.decode(layout, data, 0, sys.byteorder)

    def __setitem__(self, name: str, value: Any) -> None:
        found, map_name, offset, size, layout = self._place(name)
        try:
            data = _layout.encode_sized(value, size, layout)
        except UsageError as error:
            raise _layout.named(error, "variable", name)  # noqa: B904
        if found.flags & abi.BPF_F_RDONLY_PROG:
            raise UsageError(
                f"variable {name!r} is in {map_name}, which is read-only once it is loaded; "
                "set it in the spec before loading",
                object=self._plan.name,
            )
        view = self._view(found, map_name)
        if view is not None:
            _store(view, offset, data)
            return
        raw = _raw(found)
        key = bytes(found.key_size)
        whole = bytearray(raw.lookup(key))
        whole[offset : offset + size] = data
        raw.update(key, whole)

    def __repr__(self) -> str:
        return f"<Variables of {self._plan.name}: {', '.join(self)}>"

    def unmap(self) -> None:
        """Take the data maps out of this process' memory (design: once a guard is filled, what is
        mapped could be found through /proc/PID/mem)."""
        while self._views:
            _, (view, _writable) = self._views.popitem()
            view.close()


def _raw(found: Map) -> Map:
    """A view of the same fd without layouts; its fd is taken away from it after use."""
    view = _Borrowed(found.fd, found.name)
    view._set_shape(found.type, found.key_size, found.value_size, found.max_entries, found.flags)
    return view


class _Borrowed(Map):
    """A Map that does not own its fd."""

    __slots__ = ()

    def close(self) -> None:
        self.fd = -1


_CASTS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _load(view: mmap.mmap, offset: int, size: int) -> bytes:
    if size in _CASTS and offset % size == 0:
        with memoryview(view) as whole, whole.cast(_CASTS[size]) as words:
            return int(words[offset // size]).to_bytes(size, sys.byteorder)
    return view[offset : offset + size]


def _store(view: mmap.mmap, offset: int, data: bytes) -> None:
    """Store bytes; sizes 1, 2, 4, 8 at an aligned offset by one machine store (the item
    assignment of a cast memoryview copies a C integer of that size)."""
    size = len(data)
    if size in _CASTS and offset % size == 0:
        with memoryview(view) as whole, whole.cast(_CASTS[size]) as words:
            words[offset // size] = int.from_bytes(data, sys.byteorder)
        return
    view[offset : offset + size] = data
