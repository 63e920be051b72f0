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

from bisect import bisect_right

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
# Small objects can mean huge programs: each of thousands may reach all of thousands of subprograms.
_MAX_SLOTS = 4_000_000
_KEPT = 32 << 20  # bytes of tails kept to be shared


class Tail:
    """The subprograms behind an entry function. Slots count from the first of them.

    starts: number → slot, in order; refs: what is left to resolve, in order of slots; code: linked
    instructions. What the passes behind linking keep, as it is the same for all programs: final,
    the instructions with refs resolved; used, what they call and need.
    """

    __slots__ = ("code", "final", "refs", "starts", "used")

    def __init__(self) -> None:
        self.code = b""
        self.final: bytes | None = None
        self.starts: dict[int, int] = {}
        self.refs: list[Ref] = []
        self.used: Any = None


class Linked:
    """A linked program. Slots count from the start of the program.

    code: its instructions; entry: number of its entry function; base: the slot where ``tail``
    begins.
    """

    __slots__ = ("_places", "_spec", "base", "code", "entry", "tail")

    def __init__(self, spec: ObjectSpec, entry: int, code: Code, base: int, tail: Tail) -> None:
        self._spec = spec
        self.entry = entry
        self.code = code
        self.base = base
        self.tail = tail
        self._places: tuple[list[int], list[int]] | None = None

    @property
    def functions(self) -> list[tuple[int, int]]:
        """(function number, its first slot), in order."""
        base = self.base
        return [(self.entry, 0), *((n, base + start) for n, start in self.tail.starts.items())]

    def holder(self, slot: int) -> tuple[int, int]:
        """(number, first slot) of the function that ``slot`` is in."""
        if slot < self.base:
            return self.entry, 0
        if self._places is None:
            self._places = list(self.tail.starts), list(self.tail.starts.values())
        numbers, starts = self._places
        at = bisect_right(starts, slot - self.base) - 1
        return numbers[at], self.base + starts[at]

    @property
    def own_refs(self) -> Sequence[Ref]:
        """What is left to resolve in the entry function: map, data and extern references."""
        return _unlinked(self._spec.functions[self.entry].refs)

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


def _unlinked(refs: tuple[Ref, ...]) -> Sequence[Ref]:
    """The references that linking leaves."""
    return [ref for ref in refs if ref.kind not in ("call", "func")]


class _Part:
    """A function as linking sees it: asked for once a function, not once a program.

    calls: (slot, function number) of every reference to a function; mentioned: these functions,
    each once, in order; left: references that linking leaves.
    """

    __slots__ = ("calls", "insns", "left", "mentioned", "slots")

    def __init__(self, insns: bytes, calls: list[tuple[int, int]], left: Sequence[Ref]) -> None:
        self.insns = insns
        self.slots = len(insns) // 8
        self.calls = calls
        self.mentioned = tuple(dict.fromkeys([number for _, number in calls]))
        self.left = left


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
        self._parts: dict[int, _Part] = {}
        self._linked = self._walked = 0  # slots of all programs, of all tails

    def link(self, program: ProgramSpec) -> Linked:
        """Link ``program``. Raises RelocationError if a function is missing or it is too large,
        and what ``body`` raises."""
        if self._linked > _MAX_SLOTS:
            raise _too_many(program)
        entry = program.function
        part = self._part(entry)
        base = part.slots
        tail = self._behind(program, part)
        raw = bytearray(part.insns)
        raw += tail.code
        linked = Linked(self.spec, entry, Code(raw, self.spec.byteorder), base, tail)
        self._linked += len(raw) // 8
        set_call, starts = linked.code.set_call, tail.starts
        for slot, number in part.calls:
            set_call(slot, 0 if number == entry else base + starts[number])
        return linked

    def behind(self, program: ProgramSpec) -> Tail:
        """What the linked program has behind its entry function. Raises as ``link``."""
        return self._behind(program, self._part(program.function))

    def _behind(self, program: ProgramSpec, part: _Part) -> Tail:
        """What follows the entry function ``part``."""
        callback = program.exception_callback
        if callback == NO_CALLBACK:
            raise RelocationError(
                "its exception callback is no global subprogram.",
                hint="Name a function that is neither static nor hidden and has no SEC().",
                program=program.name,
            )
        entry = program.function
        mentioned = tuple(number for number in part.mentioned if number != entry)
        if callback >= 0:
            mentioned += (-1, callback)
        tail = self._tails.get(mentioned)
        if tail is None:
            tail = self._tail(program, mentioned, part.slots)
        if part.slots + len(tail.code) // 8 > _MAX_INSNS:
            raise _too_large(program)
        return tail

    def _part(self, number: int) -> _Part:
        """What linking needs of a function. Raises RelocationError for a call of none."""
        found = self._parts.get(number)
        if found is not None:
            return found
        function = self.spec.functions[number]
        calls = []
        for ref in function.refs:
            if ref.kind in ("call", "func"):
                if ref.function < 0:
                    raise RelocationError(
                        f"it calls byte {ref.offset} of section {ref.name!r}, where no function "
                        "is.",
                        function=function.name,
                        insn=ref.insn,
                    )
                calls.append((ref.insn, ref.function))
        insns = self._body(number) if self._body is not None else None
        found = self._parts[number] = _Part(
            function.insns if insns is None else insns, calls, _unlinked(function.refs)
        )
        return found

    def _tail(self, program: ProgramSpec, mentioned: tuple[int, ...], base: int) -> Tail:
        """What follows an entry function of ``base`` slots that mentions these functions. It is
        kept for other programs unless it depends on this one."""
        if self._walked > _MAX_SLOTS:
            raise _too_many(program)
        entry = program.function
        out = Tail()
        starts, parts = out.starts, []
        at, most = 0, _MAX_INSNS - base
        # Depth first without recursion: a chain of calls may be as long as the object likes.
        stack = [iter([number for number in mentioned if number >= 0])]
        while stack:
            for number in stack[-1]:
                if number in starts or number == entry:
                    continue
                starts[number] = at
                part = self._part(number)
                parts.append(part)
                at += part.slots
                if at > most:
                    raise _too_large(program)
                stack.append(iter(part.mentioned))
                break
            else:
                stack.pop()
        self._walked += at
        code = Code(b"".join([part.insns for part in parts]), self.spec.byteorder)
        set_call = code.set_call
        shared = True
        for start, part in zip(starts.values(), parts, strict=True):
            for slot, number in part.calls:
                if number == entry:
                    shared = False
                    set_call(start + slot, -base)
                else:
                    set_call(start + slot, starts[number])
            if part.left:
                out.refs += _moved(part.left, start)
        out.code = bytes(code.raw)
        if shared and self._kept + len(out.code) <= _KEPT:
            self._kept += len(out.code)
            self._tails[mentioned] = out
        return out


def _too_large(program: ProgramSpec) -> RelocationError:
    return RelocationError(
        f"with its subprograms it has more than {_MAX_INSNS} instructions.", program=program.name
    )


def _too_many(program: ProgramSpec) -> RelocationError:
    return RelocationError(
        f"the object's programs, each with its subprograms, have more than {_MAX_SLOTS} "
        "instructions.",
        hint="Switch programs off (with_program(name, autoload=False)).",
        program=program.name,
    )


def link(spec: ObjectSpec, program: ProgramSpec) -> Linked:
    """Link one program as the object has it (see Linker, which is for all of an object's)."""
    return Linker(spec).link(program)
