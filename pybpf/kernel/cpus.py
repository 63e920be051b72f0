# SPDX-License-Identifier: BSD-2-Clause
"""The number of possible CPUs: the length of per-CPU values."""

from __future__ import annotations

from pybpf.errors import FormatError

__all__ = ["online_cpus", "parse_cpu_list", "possible_cpus"]

_SOURCE = "/sys/devices/system/cpu/possible"
_ONLINE = "/sys/devices/system/cpu/online"
_count = 0


def parse_cpu_list(text: str) -> int:
    """One more than the highest number in a list like "0-3,8": the length of per-CPU arrays."""
    highest = -1
    for part in text.strip().split(","):
        last = part.split("-")[-1]
        if not last.isdigit():
            raise FormatError(f"{text.strip()!r} is no list of CPUs")
        highest = max(highest, int(last))
    return highest + 1


def possible_cpus() -> int:
    """Possible CPUs of this machine (Documentation/admin-guide/cputopology.rst); read once."""
    global _count
    if not _count:
        with open(_SOURCE, encoding="ascii") as file:
            _count = parse_cpu_list(file.read())
    return _count


def online_cpus() -> list[int]:
    """The numbers of the CPUs that run now."""
    with open(_ONLINE, encoding="ascii") as file:
        text = file.read().strip()
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise FormatError(f"{text!r} is no list of CPUs")
        found += range(int(first), int(last or first) + 1)
    return found
