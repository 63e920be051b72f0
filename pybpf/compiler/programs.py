# SPDX-License-Identifier: BSD-2-Clause
"""ProgramSpec → ProgLoad: linked, relocated, with its BTF.ext records and attach target."""

from __future__ import annotations

import struct

from pybpf.btf.consts import KIND_FUNC, KIND_NAMES, KIND_STRUCT, KIND_TYPEDEF
from pybpf.btf.ext import pack_core_relos
from pybpf.compiler.maps import jump_table
from pybpf.compiler.places import Places, SymbolRequest
from pybpf.compiler.struct_ops import Fitted
from pybpf.compiler.target import Target
from pybpf.elf import sections
from pybpf.errors import CompileError, RelocationError
from pybpf.plan import ops
from pybpf.reloc.externs import Resolved, kernel_symbol
from pybpf.reloc.finish import PlanBinding, finish
from pybpf.reloc.link import Linked, Linker
from pybpf.spec import ExternSpec, LineInfo, ObjectSpec, ProgramSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pybpf.compiler.core import Bodies

__all__ = ["ProgramCompiler", "attach_symbol"]

_KINDS = {"FUNC": KIND_FUNC, "TYPEDEF": KIND_TYPEDEF}


def attach_symbol(program: ProgramSpec) -> tuple[str, int, str | None] | None:
    """(name, BTF kind, module) of what a tracing or LSM program attaches to, or None.

    "mod:func" names a function of one module; several-target programs name none when loaded.
    """
    found = sections.find(program.section)
    if found is None or found[0].btf is None:
        return None
    if program.type == abi.BPF_PROG_TYPE_EXT or program.attach_to is None:
        return None
    if program.attach_program:
        return None
    prefix, kind = found[0].btf
    module, colon, name = program.attach_to.partition(":")
    if not colon:
        return prefix + module, _KINDS[kind], None
    return prefix + name, _KINDS[kind], module


class ProgramCompiler:
    """Compiles the programs of one spec.

    target: None hands every relocation to the kernel; otherwise all are decided here, but for
    module BTF fds and addresses, which only the running kernel has.
    """

    def __init__(
        self,
        spec: ObjectSpec,
        places: Places,
        target: Target | None,
        resolved: Callable[[ExternSpec], Resolved] | None,
        btf: int | None,
        struct_ops: Mapping[str, Fitted] | None = None,
        *,
        arena_at_end: bool = False,
    ) -> None:
        self.struct_ops = struct_ops or {}
        self.spec = spec
        self.places = places
        self.target = target
        self.resolved = resolved
        self.btf = btf
        self.arena_at_end = arena_at_end
        self._bodies: Bodies | None = None
        if target is not None:  # otherwise CO-RE is the kernel's
            from pybpf.compiler.core import Bodies

            self._bodies = Bodies(spec, target)
        self._linker = Linker(spec, self._bodies.body if self._bodies is not None else None)
        self._order = "<" if spec.byteorder == "little" else ">"

    def compile(self, program: ProgramSpec) -> tuple[list[ops.Op], list[SymbolRequest]]:
        """(operations, of which the last loads the program; kernel symbols they need looked up).

        Raises CompileError, RelocationError.
        """
        spec = self.spec
        if program.type == abi.BPF_PROG_TYPE_UNSPEC:
            near = sections.nearest(program.section)
            raise CompileError(
                f"its section {program.section!r} says no program type"
                + (f" (did you mean {' or '.join(near)}?)." if near else "."),
                hint="Name the section as documented for its type, or set type and "
                "expected_attach_type with with_program().",
            )
        requests: list[SymbolRequest] = []

        def symbol_of(extern: ExternSpec, module: str | None) -> int:
            name, kind = kernel_symbol(extern)
            request = (name, kind, module, extern.weak)
            requests.append(request)
            return self.places.symbol(request)

        linked = self._linker.link(program)
        binding = PlanBinding(
            spec,
            self.resolved,
            lambda name: self.places.slot("map", name),
            symbol_of,
            lambda place: self.places.slot("jump table", f"{program.name} {place}"),
            by_index=self.target is None,
            arena_at_end=self.arena_at_end,
        )
        patches = finish(spec, linked, binding)
        attach_id, attach_number = self._attach(program, requests)
        records = self._records(program, linked)
        load: list[ops.Op] = []
        for place, targets in binding.tables.items():
            load += jump_table(binding.table_slot(place), targets)
        load.append(
            ops.ProgLoad(
                dst=self.places.slot("program", program.name),
                name=program.name,
                type=program.type,
                expected_attach_type=program.expected_attach_type,
                flags=program.flags,
                license=spec.license,
                kern_version=spec.kern_version,
                insns=bytes(linked.code.raw),
                patches=patches,
                fd_array=tuple(binding.fd_array),
                btf=self.btf,
                func_info=records[0],
                line_info=records[1],
                core_relos=records[2],
                attach_symbol=attach_number,
                attach_btf_id=attach_id,
                section=program.section,
            )
        )
        return load, requests

    def _attach(
        self, program: ProgramSpec, requests: list[SymbolRequest]
    ) -> tuple[int, int | None]:
        """(vmlinux BTF id, symbol number) of the attach target; (0, None) where there is none."""
        if program.attach_program:
            return 0, None
        if program.type == abi.BPF_PROG_TYPE_EXT:
            raise RelocationError(
                "it replaces a function of a program that is already loaded, and a Plan does not "
                "know which.",
                hint="Give that program (load(…, targets={name: program})), or switch this one off "
                "(with_program(name, autoload=False)).",
                target=program.attach_to or "a loaded program",
            )
        if program.type == abi.BPF_PROG_TYPE_STRUCT_OPS:
            return self._attach_struct_ops(program, requests)
        wanted = attach_symbol(program)
        if wanted is None:
            section = sections.find(program.section)
            if section is not None and section[0].btf is not None:
                raise RelocationError(
                    "its section does not say what it attaches to.",
                    hint=f"Write SEC(\"{section[0].prefix}/NAME\") or set attach_to with "
                    "with_program().",
                )
            return 0, None
        name, kind, module = wanted
        if self.target is not None:
            found = self.target.types().find(name, kind, module)
            if found is None:
                from pybpf.reloc.near import did_you_mean

                where = f"BTF of module {module}" if module else "BTF of the kernel or its modules"
                raise RelocationError(
                    f"it attaches to {program.attach_to!r}, and there is no "
                    f"{KIND_NAMES[kind]} {name!r} in the {where}"
                    f"{did_you_mean(name, kind, self.target.vmlinux)}.",
                    hint="Check the name against `pybpf btf dump`, load the module that has it, "
                    "or switch the program off (with_program(name, autoload=False)).",
                    target=program.attach_to,
                ).numbered(3)
            resolved = found[1]
            if resolved.module is None:
                return resolved.id, None
            module = resolved.module
        request = (name, kind, module, False)
        requests.append(request)
        return 0, self.places.symbol(request)

    def _attach_struct_ops(
        self, program: ProgramSpec, requests: list[SymbolRequest]
    ) -> tuple[int, int | None]:
        """As ``_attach``, for a program of a kernel struct: it names the struct's type."""
        fitted = self.struct_ops.get(program.name)
        if fitted is None:
            raise CompileError(
                "no struct_ops variable that is created uses it.",
                hint="Switch it off (with_program(name, autoload=False)).",
            )
        if self.target is not None and fitted.module is None:
            return fitted.type_id, None
        request = (fitted.type, KIND_STRUCT, fitted.module, False)
        requests.append(request)
        return 0, self.places.symbol(request)

    def _records(self, program: ProgramSpec, linked: Linked) -> tuple[bytes, bytes, bytes]:
        """Raw func_info, line_info and core_relos."""
        core_relos = linked.core if self._bodies is None else []
        if self.btf is None:
            if core_relos:
                raise CompileError("it has CO-RE relocations but the object has no BTF.")
            return b"", b"", b""
        order = self._order
        func = b"".join(struct.pack(order + "II", *row) for row in linked.func_info)
        rows = linked.lines
        lines = b""
        if _covers(linked, rows):
            lines = b"".join(map(struct.Struct(order + "IIII").pack, *zip(*rows, strict=True)))
        core = pack_core_relos(
            [(8 * r.insn, r.type_id, r.access_off, r.kind) for r in core_relos],
            self.spec.byteorder,
        )
        if core and not func and not lines:
            # Linux 6.12 then ignores the relocations without a word.
            raise CompileError(
                "the kernel relocates only programs with func_info or line_info, and it has none.",
                hint='Compile with clang -g, or use relocate="python".',
            )
        return func, lines, core


def _covers(linked: Linked, rows: list[LineInfo]) -> bool:
    """Whether line_info says where every function begins: the kernel wants all or nothing."""
    starts = {row[0] for row in rows}
    return bool(rows) and all(start in starts for _, start in linked.functions)
