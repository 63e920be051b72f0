# SPDX-License-Identifier: BSD-2-Clause
"""Numbering of a Plan's places: fd slots and kernel symbols.

Places are asked for by what they stand for, so that alternatives of one Plan use the same slot
for the same map or program.
"""

from __future__ import annotations

__all__ = ["Places", "SymbolRequest"]

# (name in kernel BTF, BTF kind, module or None, weak)
SymbolRequest = tuple[str, int, "str | None", bool]


class Places:
    """fd slots by (kind, name) and symbols by request, numbered in order of asking."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, str], int] = {}
        self._symbols: dict[SymbolRequest, int] = {}

    def slot(self, kind: str, name: str) -> int:
        """Number of the fd slot for, say, ("map", "events")."""
        return self._slots.setdefault((kind, name), len(self._slots))

    def symbol(self, request: SymbolRequest) -> int:
        """Number of a kernel symbol."""
        return self._symbols.setdefault(request, len(self._symbols))

    @property
    def slots(self) -> int:
        """How many fd slots there are."""
        return len(self._slots)

    @property
    def symbols(self) -> int:
        """How many symbols there are."""
        return len(self._symbols)
