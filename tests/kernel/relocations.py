# SPDX-License-Identifier: BSD-2-Clause
"""Two ways to relocate, one result: what the kernel makes of a program either way.

Used on the host and, for LSM objects, in guests.
"""

from __future__ import annotations

import struct
from pathlib import Path

from pybpf.cli.verify import keeping, sized, unpinned
from pybpf.compiler import Target, compile
from pybpf.elf import read
from pybpf.errors import KernelError, PybpfError
from pybpf.plan.run import run

__all__ = ["compare", "masked"]

LDIMM64 = 0x18
PSEUDO_MAPS = (1, 2)


def masked(xlated: bytes, names: dict[int, str]) -> list[str]:
    """Translated instructions as text, without what differs from load to load.

    names: map id → name. Kernel addresses in 64-bit loads are left out.
    """
    out = []
    slots = list(struct.iter_unpack("=BBhi", xlated))
    skip = False
    for index, (code, regs, off, imm) in enumerate(slots):
        if skip:
            skip = False
            continue
        if code != LDIMM64:
            out.append(f"{code:02x} {regs:02x} {off} {imm}")
            continue
        skip = True
        high = slots[index + 1][3]
        if regs >> 4 in PSEUDO_MAPS:
            out.append(f"map {regs:02x} {names.get(imm, imm)} {high}")
        elif high >> 16 == -1:  # 0xffff…: an address in the kernel
            out.append(f"address {regs:02x}")
        else:
            out.append(f"load {regs:02x} {imm} {high}")
    return out


def compare(source: str | Path) -> tuple[int, list[str]]:
    """(programs that loaded both ways, differences) of one object.

    Each program is loaded alone, relocated by the kernel and by pybpf; both must load or both be
    refused with the same errno.
    """
    spec = unpinned(sized(read(source), []))
    target = Target.of_running()
    loaded, problems = 0, []
    for name in spec.programs:
        spec_one = keeping(spec, name)
        results: list[list[str] | int] = []
        for mode in ("kernel", "python"):
            try:
                with run(compile(spec_one, target, relocate=mode)) as live:
                    names = {m.id: n for n, m in live.maps.items()}
                    results.append(masked(live.programs[name].xlated(), names))
            except KernelError as exc:
                results.append(exc.errno)
            except PybpfError:
                results.append(-1)  # nothing to attach to: told differently by the two ways
        one, two = results
        if one != two:
            problems.append(f"{Path(source).name} {name}: {_first(one, two)}")
        elif isinstance(one, list):
            loaded += 1
    return loaded, problems


def _first(one: list[str] | int, two: list[str] | int) -> str:
    if isinstance(one, int) or isinstance(two, int):
        return f"kernel: {one if isinstance(one, int) else 'loaded'}, python: " + (
            str(two) if isinstance(two, int) else "loaded"
        )
    if len(one) != len(two):
        return f"{len(one)} and {len(two)} instructions"
    at = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
    return f"instruction {at}: kernel {one[at]}, python {two[at]}"

