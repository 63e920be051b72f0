# SPDX-License-Identifier: BSD-2-Clause
"""The final instructions of an object for a kernel, without loading anything.

Map references carry 0x4d000000 | the map's index instead of an fd, so that two listings of the
same object compare equal.
"""

from __future__ import annotations

import os

from pybpf.compiler.core import Bodies
from pybpf.compiler.maps import arena_at_end
from pybpf.compiler.struct_ops import fit
from pybpf.compiler.target import Target
from pybpf.elf.jump_tables import JUMP_TABLES
from pybpf.errors import PybpfError, RelocationError
from pybpf.record import Frozen
from pybpf.reloc.externs import Resolved, resolve
from pybpf.reloc.finish import FixedBinding, finish_shared
from pybpf.reloc.link import Linked, Linker
from pybpf.spec import ExternSpec, MapSpec, ObjectSpec, ProgramSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.reloc.core import Outcome

__all__ = ["MAP_MARK", "Listing", "ProgramListing", "listing", "map_max_entries"]

MAP_MARK = 0x4D000000


class ProgramListing:
    """One program: its final instructions, or why there are none."""

    def __init__(self, program: ProgramSpec, bodies: Bodies) -> None:
        self.program = program
        self.bodies = bodies
        self.insns = b""
        self.error: PybpfError | None = None
        self.linked: Linked | None = None

    @property
    def outcomes(self) -> dict[int, list[Outcome]]:
        """What CO-RE decided, by function number."""
        numbers = [n for n, _ in self.linked.functions] if self.linked is not None else []
        return {n: found for n in numbers if (found := self.bodies.outcomes(n))}


class Listing(Frozen):
    """An object's maps and programs, for one kernel.

    maps: those that the object declares and, behind them, one a jump table and program.
    """

    spec: ObjectSpec
    maps: list[MapSpec]
    programs: list[ProgramListing]

    def as_json(self, path: str) -> dict[str, Any]:
        """The object of the command contract of ``pybpf relocate --json``."""
        declared = len(self.spec.maps)
        tables = [_map_json(m) for m in self.maps[declared:]]
        return {
            "object": path,
            "error": None,
            "maps": [_map_json(m) for m in self.maps[:declared]],
            "programs": [
                {
                    "name": p.program.name,
                    "section": p.program.section,
                    "prog_type": p.program.type,
                    "expected_attach_type": p.program.expected_attach_type,
                    "prog_flags": p.program.flags,
                    "autoload": p.program.autoload,
                    "error": str(p.error) if p.error is not None else None,
                    "insns": p.insns.hex(),
                }
                for p in self.programs
            ],
            # Maps of the loader's own; instructions count them behind the object's.
            **({"jump_tables": tables} if tables else {}),
        }


def _map_json(spec: MapSpec) -> dict[str, Any]:
    return {
        "name": spec.kernel_name or spec.name,
        "type": spec.type,
        "key_size": spec.key_size,
        "value_size": spec.value_size,
        "max_entries": map_max_entries(spec),
        "map_flags": spec.flags,
        "map_extra": spec.extra,
    }


def map_max_entries(spec: MapSpec) -> int:
    """max_entries as the kernel will see it here: a perf event array of 0 has one a CPU."""
    if spec.type == abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY and spec.max_entries == 0:
        from pybpf.kernel.cpus import possible_cpus

        return possible_cpus()
    return spec.max_entries


def listing(spec: ObjectSpec, target: Target) -> Listing:
    """Relocate every program for ``target``. A program's failure is kept with the program."""
    struct_ops = fit(spec, target)
    spec = struct_ops.spec
    maps = list(spec.maps.values())
    handles = {m.name: MAP_MARK | index for index, m in enumerate(maps)}
    resolved: dict[str, Resolved | RelocationError] = {}

    types = target.types()

    def lookup(extern: ExternSpec) -> Resolved:
        found = resolved.get(extern.name)
        if found is None:
            try:
                found = resolve(spec, extern, types)
            except RelocationError as exc:
                found = exc
            resolved[extern.name] = found
        if isinstance(found, RelocationError):
            raise found.again().at(extern=extern.name)
        return found

    relocated = Bodies(spec, target)
    linker = Linker(spec, relocated.body)
    at_end = arena_at_end(spec, target)
    out = []
    for program in spec.programs.values():
        entry = ProgramListing(program, relocated)
        out.append(entry)
        try:
            unfit = struct_ops.errors.get(struct_ops.users.get(program.name, ""))
            if unfit is not None:
                raise unfit.again()
            linked = entry.linked = linker.link(program)
            binding = FixedBinding(
                spec, lookup, handles, target.address, MAP_MARK | len(maps), arena_at_end=at_end
            )
            finish_shared(spec, linked, binding)
            # One map a table and program, behind those that the object declares.
            maps += [
                MapSpec(JUMP_TABLES, abi.BPF_MAP_TYPE_INSN_ARRAY, 4, 16, len(targets),
                        section=JUMP_TABLES)
                for targets in binding.tables.values()
            ]  # fmt: skip
            entry.insns = bytes(linked.code.raw)
        except PybpfError as exc:
            entry.error = exc.at(
                object=os.fspath(spec.path) if spec.path else spec.name,
                program=program.name,
                section=program.section,
            )
    return Listing(spec, maps, out)
