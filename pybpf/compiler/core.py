# SPDX-License-Identifier: BSD-2-Clause
"""CO-RE over an object: each function is relocated once, however many programs share it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from pybpf.btf.model import Btf
from pybpf.compiler.target import Target
from pybpf.errors import FormatError, PybpfError, RelocationError
from pybpf.reloc.core import CoreRelocator, CoreTarget, Outcome
from pybpf.spec import FunctionSpec, ObjectSpec

__all__ = ["Cache", "relocated_bodies", "source_of"]

Cache = dict[int, "tuple[bytes, list[Outcome]] | PybpfError"]
_relocators: weakref.WeakKeyDictionary[Btf, tuple[Target, CoreRelocator]] = (
    weakref.WeakKeyDictionary()
)


def _relocator(spec: ObjectSpec, target: Target) -> CoreRelocator:
    assert spec.btf is not None
    kept = _relocators.get(spec.btf)
    if kept is not None and kept[0] is target:
        return kept[1]
    made = CoreRelocator(
        spec.btf, CoreTarget(lambda: target.vmlinux, lambda: dict(target.modules()))
    )
    made.prepare(relo for function in spec.functions for relo in function.core)
    _relocators[spec.btf] = (target, made)
    return made


def relocated_bodies(
    spec: ObjectSpec, numbers: Iterable[int], target: Target, cache: Cache
) -> tuple[dict[int, bytes], dict[int, list[Outcome]]]:
    """(instructions, outcomes) of these functions, CO-RE relocated for ``target``.

    cache: keeps results between calls for one spec and target. Raises RelocationError or
    FormatError with function, instruction and source line.
    """
    bodies: dict[int, bytes] = {}
    outcomes: dict[int, list[Outcome]] = {}
    for number in numbers:
        function = spec.functions[number]
        if not function.core:
            continue
        done = cache.get(number)
        if done is None:
            done = cache[number] = _relocate(spec, function, target)
        if isinstance(done, PybpfError):
            raise done
        bodies[number], outcomes[number] = done
    return bodies, outcomes


def _relocate(
    spec: ObjectSpec, function: FunctionSpec, target: Target
) -> tuple[bytes, list[Outcome]] | PybpfError:
    insns = bytearray(function.insns)
    try:
        outcomes = _relocator(spec, target).relocate(insns, function.core)
    except (RelocationError, FormatError) as exc:
        slot = exc.where.get("insn")
        return exc.at(
            function=function.name,
            source=source_of(spec, function, slot) if isinstance(slot, int) else None,
        )
    return bytes(insns), outcomes


def source_of(spec: ObjectSpec, function: FunctionSpec, slot: int) -> str | None:
    """ "file:line" of an instruction, or None where line_info does not say."""
    found = None
    for row in function.lines:
        if row.insn > slot:
            break
        found = row
    if found is None or spec.btf is None:
        return None
    return f"{spec.btf.name(found.file_off)}:{found.line_col >> 10}"
