# SPDX-License-Identifier: BSD-2-Clause
"""Linking a program: its entry function with the subprograms that it reaches behind it.

The kernel takes a program as one run of instructions. Subprograms follow in the order in which
calls (and loads of function addresses) first mention them, depth first: the order in which
libbpf appends them, so that both loaders give the same instructions.
"""

from __future__ import annotations

from pybpf.errors import RelocationError
from pybpf.reloc.insn import Code
from pybpf.spec import NO_CALLBACK, CoreRelo, LineInfo, ObjectSpec, ProgramSpec, Ref
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Linked", "link"]

# struct bpf_insn offsets are 32 bits; the verifier stops at a million instructions.
_MAX_INSNS = 1_000_000


class Linked:
    """A linked program. Slots count from the start of the program.

    functions: (function number, its first slot), in order; refs: what is left to resolve
    (map, data and extern references); func_info: (slot, FUNC id), empty unless every function
    has one; func_of: function number of each func_info row.
    """

    __slots__ = ("code", "core", "func_info", "functions", "lines", "refs")

    def __init__(self, code: Code, functions: list[tuple[int, int]]) -> None:
        self.code = code
        self.functions = functions
        self.refs: list[Ref] = []
        self.func_info: list[tuple[int, int]] = []
        self.lines: list[LineInfo] = []
        self.core: list[CoreRelo] = []


def link(
    spec: ObjectSpec, program: ProgramSpec, bodies: Mapping[int, bytes] | None = None
) -> Linked:
    """Link ``program``.

    bodies: instructions of functions by number where they differ from the spec's (CO-RE
    relocated). Raises RelocationError if a function is missing or the program is too large.
    """
    bodies = bodies or {}
    raw = bytearray()
    starts: dict[int, int] = {}
    order: list[tuple[int, int]] = []
    calls: list[tuple[int, int]] = []  # (slot, function number)

    def append(number: int) -> None:
        function = spec.functions[number]
        starts[number] = len(raw) // 8
        order.append((number, starts[number]))
        raw.extend(bodies.get(number, function.insns))
        if len(raw) > 8 * _MAX_INSNS:
            raise RelocationError(
                f"with its subprograms it has more than {_MAX_INSNS} instructions.",
                program=program.name,
            )

    if program.exception_callback == NO_CALLBACK:
        raise RelocationError(
            "its exception callback is no global subprogram.",
            hint="Name a function that is neither static nor hidden and has no SEC().",
            program=program.name,
        )
    append(program.function)
    # Depth first without recursion: a chain of calls may be as long as the object likes.
    stack = [iter(spec.functions[program.function].refs)]
    owners = [program.function]
    while stack:
        for ref in stack[-1]:
            if ref.kind not in ("call", "func"):
                continue
            if ref.function < 0:
                raise RelocationError(
                    f"it calls byte {ref.offset} of section {ref.name!r}, where no function is.",
                    function=spec.functions[owners[-1]].name,
                    insn=ref.insn,
                )
            calls.append((starts[owners[-1]] + ref.insn, ref.function))
            if ref.function not in starts:
                append(ref.function)
                stack.append(iter(spec.functions[ref.function].refs))
                owners.append(ref.function)
                break
        else:
            stack.pop()
            owners.pop()
            callback = program.exception_callback
            if not stack and callback >= 0 and callback not in starts:
                append(callback)
                stack.append(iter(spec.functions[callback].refs))
                owners.append(callback)
    linked = Linked(Code(raw, spec.byteorder), order)
    _patch_calls(spec, linked, starts, calls)
    _gather(spec, linked)
    return linked


def _patch_calls(
    spec: ObjectSpec, linked: Linked, starts: dict[int, int], calls: list[tuple[int, int]]
) -> None:
    for slot, number in calls:
        if linked.code.opcode(slot) == 0x18:
            linked.code.set_source(slot, abi.BPF_PSEUDO_FUNC)
        linked.code.set_imm(slot, starts[number] - slot - 1)


def _gather(spec: ObjectSpec, linked: Linked) -> None:
    """Shift references and BTF.ext records of every function to its place in the program."""
    typed = all(spec.functions[number].type_id for number, _ in linked.functions)
    for number, start in linked.functions:
        function = spec.functions[number]
        linked.refs.extend(
            Ref(ref.insn + start, *ref[1:])
            for ref in function.refs
            if ref.kind not in ("call", "func")
        )
        if typed:
            linked.func_info.append((start, function.type_id))
        if start:
            linked.lines.extend(LineInfo(r[0] + start, *r[1:]) for r in function.lines)
            linked.core.extend(CoreRelo(r[0] + start, *r[1:]) for r in function.core)
        else:
            linked.lines.extend(function.lines)
            linked.core.extend(function.core)
