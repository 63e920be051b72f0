# SPDX-License-Identifier: BSD-2-Clause
"""The number of possible CPUs: the length of per-CPU values."""

from __future__ import annotations

import posix

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
        # A text file would bring a codec in: this is read while a machine boots.
        fd = posix.open(_SOURCE, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            _count = parse_cpu_list(posix.read(fd, 4096).decode("latin-1"))
        finally:
            posix.close(fd)
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
