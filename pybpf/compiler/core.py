# SPDX-License-Identifier: BSD-2-Clause
"""CO-RE over an object: each function is relocated once, however many programs share it."""

from __future__ import annotations

from pybpf.compiler.target import Target
from pybpf.errors import FormatError, PybpfError, RelocationError
from pybpf.reloc.core import CoreRelocator, CoreTarget, Outcome
from pybpf.spec import FunctionSpec, ObjectSpec

__all__ = ["Bodies", "source_of"]


class Bodies:
    """Functions of one spec, CO-RE relocated for one kernel, each when first asked for."""

    def __init__(self, spec: ObjectSpec, target: Target) -> None:
        self.spec = spec
        self.target = target
        self._relocator: CoreRelocator | None = None
        self._done: dict[int, tuple[bytes, list[Outcome]] | PybpfError] = {}

    def body(self, number: int) -> bytes | None:
        """Relocated instructions of a function, None if it has no relocations.

        Raises RelocationError or FormatError with function, instruction and source line.
        """
        function = self.spec.functions[number]
        if not function.core:
            return None
        done = self._done.get(number)
        if done is None:
            done = self._done[number] = self._relocate(function)
        if isinstance(done, PybpfError):
            raise done.again()  # for each program that calls it
        return done[0]

    def outcomes(self, number: int) -> list[Outcome]:
        """What was decided in a function: nothing before it was relocated."""
        done = self._done.get(number)
        return [] if done is None or isinstance(done, PybpfError) else done[1]

    def _relocate(self, function: FunctionSpec) -> tuple[bytes, list[Outcome]] | PybpfError:
        if self._relocator is None:
            assert self.spec.btf is not None
            target = self.target
            self._relocator = CoreRelocator(
                self.spec.btf, CoreTarget(lambda: target.vmlinux, lambda: dict(target.modules()))
            )
            # one pass over the kernel's names serves the whole object
            self._relocator.prepare(relo for f in self.spec.functions for relo in f.core)
        insns = bytearray(function.insns)
        try:
            outcomes = self._relocator.relocate(insns, function.core)
        except (RelocationError, FormatError) as exc:
            slot = exc.where.get("insn")
            return exc.at(
                function=function.name,
                source=source_of(self.spec, function, slot) if isinstance(slot, int) else None,
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
