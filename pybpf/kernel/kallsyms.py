# SPDX-License-Identifier: BSD-2-Clause
"""Addresses of kernel symbols from /proc/kallsyms, which has some 200,000 lines."""

from __future__ import annotations

from pybpf.errors import PlanError, SymbolNotFoundError
from pybpf.sys.syscalls import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["address", "addresses", "find", "symbols"]

PATH = "/proc/kallsyms"


def find(data: bytes, name: str) -> list[int]:
    """All addresses of ``name`` in the text of kallsyms ("ffff… T name[\\t[module]]"), which is
    searched, not split."""
    found = []
    needle = b" " + name.encode()
    at = data.find(needle)
    while at >= 0:
        end = at + len(needle)
        if end == len(data) or data[end] in b"\n\t":
            start = data.rfind(b"\n", 0, at) + 1
            found.append(int(data[start : data.index(b" ", start)], 16))
        at = data.find(needle, end)
    return found


def symbols() -> Iterator[tuple[int, str]]:
    """(address, name) of every symbol, the address 0 where the kernel hides it; nothing where the
    file cannot be read."""
    try:
        with open(PATH, "rb") as file:
            for line in file:
                number, _, rest = line.split(b" ", 2)
                yield int(number, 16), rest.split()[0].decode("ascii", "replace")
    except OSError:
        return


def addresses() -> Iterator[tuple[int, str]]:
    """(address, name) of every symbol whose address the kernel tells."""
    return (found for found in symbols() if found[0])


def address(name: str) -> int:
    """The only address of ``name``.

    Raises SymbolNotFoundError if there is none, PlanError if there are several or the kernel
    hides addresses (kernel.kptr_restrict, or no CAP_SYSLOG), KernelError if /proc is missing.
    """
    try:
        with open(PATH, "rb") as file:
            data = file.read()
    except OSError as error:
        raise fail("open", error.errno or 2, path=PATH) from None
    found = sorted(set(find(data, name)))
    if not found:
        raise SymbolNotFoundError(f"the running kernel has no symbol {name}.", names=(name,))
    if found == [0]:
        raise PlanError(
            f"the address of {name} is hidden from this process.",
            hint="It needs CAP_SYSLOG and kernel.kptr_restrict below 2.",
        )
    if len(found) > 1:
        raise PlanError(f"the kernel has {len(found)} symbols {name}: it is ambiguous.")
    return found[0]
