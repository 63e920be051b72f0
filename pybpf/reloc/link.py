# SPDX-License-Identifier: BSD-2-Clause
"""Linking a program: its entry function with the subprograms that it reaches behind it.

The kernel takes a program as one run of instructions. Subprograms follow in the order in which
calls (and loads of function addresses) first mention them, depth first: the order in which
libbpf appends them, so that both loaders give the same instructions.

Distances of calls are relative, so what follows an entry function is the same wherever it begins.
Programs that mention the same subprograms in the same order share it (``Tail``): an object of 500
programs that reach 1,000 subprograms is linked in the time of copying.
"""

from __future__ import annotations

from pybpf.errors import RelocationError
from pybpf.reloc.insn import Code
from pybpf.spec import NO_CALLBACK, CoreRelo, LineInfo, ObjectSpec, ProgramSpec, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    Row = TypeVar("Row", Ref, LineInfo, CoreRelo)

__all__ = ["Linked", "Linker", "Tail", "link"]

# struct bpf_insn offsets are 32 bits; the verifier stops at a million instructions.
_MAX_INSNS = 1_000_000
_KEPT = 32 << 20  # bytes of tails kept to be shared


class Tail:
    """The subprograms behind an entry function. Slots count from the first of them.

    functions: (number, slot); refs: what is left to resolve, in order of slots; code: linked
    instructions. What the passes behind linking keep, as it is the same for all programs: final,
    the instructions with refs resolved; used, what they call and need.
    """

    __slots__ = ("code", "final", "functions", "refs", "starts", "used")

    def __init__(self) -> None:
        self.code = b""
        self.final: bytes | None = None
        self.functions: list[tuple[int, int]] = []
        self.starts: dict[int, int] = {}
        self.refs: list[Ref] = []
        self.used: Any = None


class Linked:
    """A linked program. Slots count from the start of the program.

    code: its instructions; entry: number of its entry function; base: the slot where ``tail``
    begins.
    """

    __slots__ = ("_spec", "base", "code", "entry", "tail")

    def __init__(self, spec: ObjectSpec, entry: int, code: Code, base: int, tail: Tail) -> None:
        self._spec = spec
        self.entry = entry
        self.code = code
        self.base = base
        self.tail = tail

    @property
    def functions(self) -> list[tuple[int, int]]:
        """(function number, its first slot), in order."""
        base = self.base
        return [(self.entry, 0), *((n, base + start) for n, start in self.tail.functions)]

    @property
    def own_refs(self) -> Sequence[Ref]:
        """What is left to resolve in the entry function: map, data and extern references."""
        return _unlinked(self._spec.functions[self.entry].refs, 0)

    @property
    def refs(self) -> list[Ref]:
        """What is left to resolve, in order of slots."""
        return [*self.own_refs, *_moved(self.tail.refs, self.base)]

    @property
    def func_info(self) -> list[tuple[int, int]]:
        """(slot, FUNC id) of each function; empty unless every function has one."""
        functions = self._spec.functions
        found = [(start, functions[number].type_id) for number, start in self.functions]
        return found if all(type_id for _, type_id in found) else []

    @property
    def lines(self) -> list[LineInfo]:
        """Line records of all functions."""
        functions = self._spec.functions
        out: list[LineInfo] = []
        for number, start in self.functions:
            out += _moved(functions[number].lines, start)
        return out

    @property
    def core(self) -> list[CoreRelo]:
        """CO-RE records of all functions."""
        functions = self._spec.functions
        out: list[CoreRelo] = []
        for number, start in self.functions:
            out += _moved(functions[number].core, start)
        return out


def _moved(rows: Sequence[Row], start: int) -> Sequence[Row]:
    """Records, whose first field is a slot, moved by ``start`` slots."""
    return [row.__class__(row[0] + start, *row[1:]) for row in rows] if start and rows else rows


def _unlinked(refs: tuple[Ref, ...], start: int) -> Sequence[Ref]:
    """The references that linking leaves, moved by ``start`` slots."""
    return _moved([ref for ref in refs if ref.kind not in ("call", "func")], start)


class Linker:
    """Links the programs of one spec.

    body: gives a function's instructions by number where they differ from the spec's (CO-RE
    relocated), None where they do not.
    """

    def __init__(
        self, spec: ObjectSpec, body: Callable[[int], bytes | None] | None = None
    ) -> None:
        self.spec = spec
        self._body = body
        self._tails: dict[tuple[int, ...], Tail] = {}
        self._kept = 0

    def link(self, program: ProgramSpec) -> Linked:
        """Link ``program``. Raises RelocationError if a function is missing or it is too large,
        and what ``body`` raises."""
        entry = program.function
        insns = self._insns(entry)
        base = len(insns) // 8
        calls = self._calls(entry)
        tail = self._behind(program, calls, base)
        raw = bytearray(insns)
        raw += tail.code
        linked = Linked(self.spec, entry, Code(raw, self.spec.byteorder), base, tail)
        set_call, starts = linked.code.set_call, tail.starts
        for slot, number in calls:
            set_call(slot, 0 if number == entry else base + starts[number])
        return linked

    def behind(self, program: ProgramSpec) -> Tail:
        """What the linked program has behind its entry function. Raises as ``link``."""
        entry = program.function
        return self._behind(program, self._calls(entry), len(self._insns(entry)) // 8)

    def _behind(
        self, program: ProgramSpec, calls: list[tuple[int, int]], base: int
    ) -> Tail:
        """What follows the entry function, which has ``base`` slots and these calls."""
        callback = program.exception_callback
        if callback == NO_CALLBACK:
            raise RelocationError(
                "its exception callback is no global subprogram.",
                hint="Name a function that is neither static nor hidden and has no SEC().",
                program=program.name,
            )
        entry = program.function
        mentioned = tuple(dict.fromkeys(number for _, number in calls if number != entry))
        if callback >= 0:
            mentioned += (-1, callback)
        tail = self._tails.get(mentioned)
        if tail is None:
            tail = self._tail(program, mentioned, base)
        if base + len(tail.code) // 8 > _MAX_INSNS:
            raise _too_large(program)
        return tail

    def _insns(self, number: int) -> bytes:
        found = self._body(number) if self._body is not None else None
        return self.spec.functions[number].insns if found is None else found

    def _calls(self, number: int) -> list[tuple[int, int]]:
        """(slot, function number) of every reference to a function."""
        function = self.spec.functions[number]
        out = []
        for ref in function.refs:
            if ref.kind in ("call", "func"):
                if ref.function < 0:
                    raise RelocationError(
                        f"it calls byte {ref.offset} of section {ref.name!r}, where no function "
                        "is.",
                        function=function.name,
                        insn=ref.insn,
                    )
                out.append((ref.insn, ref.function))
        return out

    def _tail(self, program: ProgramSpec, mentioned: tuple[int, ...], base: int) -> Tail:
        """What follows an entry function of ``base`` slots that mentions these functions. It is
        kept for other programs unless it depends on this one."""
        entry = program.function
        out = Tail()
        starts, raw = out.starts, bytearray()
        calls: list[tuple[int, int]] = []
        shared = True
        # Depth first without recursion: a chain of calls may be as long as the object likes.
        stack = [iter([number for number in mentioned if number >= 0])]
        while stack:
            for number in stack[-1]:
                if number in starts or number == entry:
                    continue
                start = starts[number] = len(raw) // 8
                out.functions.append((number, start))
                raw += self._insns(number)
                if base + len(raw) // 8 > _MAX_INSNS:
                    raise _too_large(program)
                own = self._calls(number)
                calls.extend((start + slot, called) for slot, called in own)
                out.refs += _unlinked(self.spec.functions[number].refs, start)
                stack.append(iter([called for _, called in own]))
                break
            else:
                stack.pop()
        code = Code(raw, self.spec.byteorder)
        for slot, number in calls:
            if number == entry:
                shared = False
            code.set_call(slot, -base if number == entry else starts[number])
        out.code = bytes(code.raw)
        if shared and self._kept + len(out.code) <= _KEPT:
            self._kept += len(out.code)
            self._tails[mentioned] = out
        return out


def _too_large(program: ProgramSpec) -> RelocationError:
    return RelocationError(
        f"with its subprograms it has more than {_MAX_INSNS} instructions.", program=program.name
    )


def link(spec: ObjectSpec, program: ProgramSpec) -> Linked:
    """Link one program as the object has it (see Linker, which is for all of an object's)."""
    return Linker(spec).link(program)
