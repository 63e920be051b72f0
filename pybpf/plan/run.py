# SPDX-License-Identifier: BSD-2-Clause
"""Execute a Plan: make its maps, load its programs, and undo all of it if a step fails.

``run(plan)`` gives a live ``Object`` (pybpf.plan.live); ``Executor`` runs single operations for
tools that want to look on.

Undoing: every effect is written into a journal before the next operation starts. A failure takes
the journal back from its end: links are closed, pins unlinked, programs and maps closed. That
holds for KeyboardInterrupt and MemoryError too.
"""

from __future__ import annotations

import posix  # all that is used of os, which takes 1 ms to import

from pybpf.errors import KernelError, PlanError, PybpfError, SymbolNotFoundError, VerifierError
from pybpf.plan import ops as _ops
from pybpf.plan import steps as _steps
from pybpf.plan.live import Object
from pybpf.sys import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Symbol = tuple[int, int]  # (fd of the module's BTF, 0 for vmlinux; type id)

__all__ = ["Executor", "run"]


def run(
    plan: _ops.Plan,
    *,
    log_level: int = 0,
    maps: Mapping[str, int] | None = None,
    targets: Mapping[str, int] | None = None,
    token: int = 0,
    trace: Callable[[_ops.Op, int], None] | None = None,
) -> Object:
    """Execute ``plan.ops``; attach with ``Object.attach()``.

    log_level: as for BPF_PROG_LOAD (1, 2, 4); the logs are then in ``Object.logs``.
    maps: {name: fd} of maps to use in place of creating them (the fds stay the caller's).
    targets: {name: fd of a loaded program} whose function this program of the Plan replaces
    (freplace, 5.6) or traces (fentry, fexit; 5.5): the function that its section names.
    token: fd of a BPF token (6.9, pybpf.kernel.token) by whose rights BTF, maps and programs are
    made; 0: by the process' own. trace: called after each operation with it and the nanoseconds
    it took.
    Raises KernelError, VerifierError, SymbolNotFoundError or PlanError; nothing is left behind.
    """
    executor = Executor(
        plan, log_level=log_level, maps=maps, targets=targets, token=token, trace=trace
    )
    try:
        executor.execute(plan.ops)
        executor.close_symbols()
        return Object(plan, executor)
    except BaseException as error:
        executor.undo(0, error)
        executor.close_symbols()
        raise


class Executor:
    """The state of a Plan under execution.

    slots: fds by slot number, -1 where nothing is; symbols: results of Lookup by number, None for
    a weak name that is not there; choices: {label of a Choose: label of what succeeded};
    failures: (label of a Choose, label of what failed, the error) in order;
    reused: slots of maps that were there already (not filled, not frozen); percpu: slots of maps
    with a value for each CPU; journal: what is to be undone, by kind (``undo_one``). reuse: {slot:
    fd given for it}; targets, token, log_level: as given to ``run``.
    """

    __slots__ = (
        "_conditions", "_object", "_trace", "addresses", "choices", "failures", "journal",
        "log_level", "logs", "map_names", "notes", "percpu", "program_names", "reuse", "reused",
        "slots", "symbols", "targets", "token",
    )  # fmt: skip

    def __init__(
        self,
        plan: _ops.Plan,
        *,
        log_level: int = 0,
        maps: Mapping[str, int] | None = None,
        targets: Mapping[str, int] | None = None,
        token: int = 0,
        trace: Callable[[_ops.Op, int], None] | None = None,
    ) -> None:
        self.token = token
        self.slots = [-1] * plan.slots
        self.symbols: list[Symbol | None] = [None] * plan.symbols
        self.journal: list[tuple[object, ...]] = []
        self.choices: dict[str, str] = {}
        self.failures: list[tuple[str, str, PybpfError]] = []
        self.reused: set[int] = set()
        self.logs: dict[str, str] = {}
        self.notes: list[str] = []
        self._object = plan.name
        self.program_names = {slot: name for name, slot in plan.programs.items()}
        self.map_names = {place[0]: name for name, place in plan.maps.items()}
        self._conditions: dict[tuple[str, str | int], bool] = {}
        self.log_level = log_level
        self.percpu: set[int] = set()
        self._trace = trace
        self.targets = dict(targets or {})
        maps = maps or {}
        for what, names, there in (
            ("program", self.targets, plan.programs), ("map", maps, plan.maps)
        ):  # fmt: skip
            for name in names:
                if name not in there:
                    raise PlanError(
                        f"the Plan has no {what} {name!r}; it has {', '.join(there)}",
                        object=plan.name,
                    )
        self.addresses: dict[str, int] = {}
        self.reuse = {plan.maps[name][0]: fd for name, fd in maps.items()}

    # --- running ------------------------------------------------------------------------------

    def execute(self, operations: Iterable[_ops.Op]) -> None:
        """Run operations in order. On failure the journal still holds what was done."""
        trace = self._trace
        for op in operations:
            step = _STEPS.get(type(op))
            if step is None:
                raise PlanError(f"{op!r} is no operation", object=self._object)
            try:
                if trace is None:
                    step(self, op)
                else:
                    from time import perf_counter_ns

                    start = perf_counter_ns()
                    step(self, op)
                    trace(op, perf_counter_ns() - start)
            except PybpfError as error:
                raise error.at(object=self._object)  # noqa: B904

    def undo(self, mark: int, cause: BaseException | None = None) -> None:
        """Take the journal back to its first ``mark`` entries, last entry first."""
        while len(self.journal) > mark:
            entry = self.journal.pop()
            try:
                self.undo_one(entry)
            except (OSError, KernelError) as error:
                # Go on: the rest must be undone too. Tell it with the error that led here.
                self.notes.append(f"could not undo {entry[0]}: {error}")
                if cause is not None:
                    cause.add_note(self.notes[-1])

    def undo_one(self, entry: tuple[object, ...]) -> None:
        """Undo what one entry of the journal says. Raises OSError or KernelError."""
        kind = entry[0]
        if kind == "fd":
            slot = entry[1]
            assert isinstance(slot, int)
            fd, self.slots[slot] = self.slots[slot], -1
            self.reused.discard(slot)
            if fd >= 0:
                posix.close(fd)
        elif kind == "pin":
            posix.unlink(str(entry[1]))
        elif kind == "arena":
            from pybpf.kernel import arena

            slot, address, size = entry[1:]
            assert isinstance(address, int)
            assert isinstance(size, int)
            arena.unmap(address, size)
        elif kind == "registered":
            own = entry[1]
            assert isinstance(own, int)
            try:
                bpf.map_delete(own, bytes(4))
            finally:
                posix.close(own)
        elif kind == "attached":
            prog, target, attach_type = entry[1:]
            assert isinstance(prog, int)
            assert isinstance(target, int)
            assert isinstance(attach_type, int)
            try:
                bpf.prog_detach(prog, target, attach_type)
            finally:
                posix.close(target)

    def close_symbols(self) -> None:
        """Close the fds of module BTF that Lookup opened; ids of vmlinux stay usable."""
        for number, symbol in enumerate(self.symbols):
            if symbol is not None and symbol[0]:
                self.symbols[number] = (0, 0)
                posix.close(symbol[0])

    def fill_slot(self, slot: int, fd: int) -> None:
        """Put a new fd into its slot; from here on the journal knows of it."""
        if not 0 <= slot < len(self.slots) or self.slots[slot] >= 0:
            posix.close(fd)
            raise PlanError(f"fd slot {slot} does not exist or is taken")
        self.slots[slot] = fd
        self.journal.append(("fd", slot))

    def fd(self, slot: int, what: str = "fd") -> int:
        """The fd in a slot; PlanError if nothing was put there."""
        fd = self.slots[slot] if 0 <= slot < len(self.slots) else -1
        if fd < 0:
            raise PlanError(
                f"{what} slot {slot} is empty: no earlier operation that ran has filled it"
            )
        return fd

    def symbol(self, number: int) -> Symbol | None:
        if not 0 <= number < len(self.symbols):
            raise PlanError(f"symbol {number} does not exist")
        return self.symbols[number]

    # --- branches -----------------------------------------------------------------------------

    def _choose(self, op: _ops.Choose) -> None:
        if not op.alternatives:
            raise PlanError(f"choice {op.label!r} has no alternatives")
        failed: list[tuple[str, PybpfError]] = []
        for label, operations in op.alternatives:
            mark = len(self.journal)
            known = dict(self._conditions), list(self.symbols), dict(self.logs)
            try:
                self.execute(operations)
            except PybpfError as error:
                self.undo(mark, error)
                self._restore_symbols(known[1])
                self._conditions, self.logs = known[0], known[2]
                self.failures.append((op.label, label, error))
                failed.append((label, error))
                if not _leads_on(error, op.on) or label == op.alternatives[-1][0]:
                    for earlier, why in failed[:-1]:
                        error.add_note(f"{op.label}: {earlier!r} failed before: {why}")
                    error.where.setdefault("choice", f"{op.label}: {label}")
                    raise
                continue
            self.choices[op.label] = label
            return

    def _restore_symbols(self, before: list[Symbol | None]) -> None:
        for number, symbol in enumerate(self.symbols):
            if symbol != before[number]:
                if symbol is not None and symbol[0]:
                    posix.close(symbol[0])
                self.symbols[number] = before[number]

    def _when(self, op: _ops.When) -> None:
        self.execute(op.then if self.holds(op.condition) else op.otherwise)

    def holds(self, condition: tuple[str, str | int]) -> bool:
        """Whether a condition holds; the first answer is kept for the whole life of the Plan, so
        that ``attach`` decides as ``ops`` did."""
        if condition not in self._conditions:
            kind, what = condition
            if kind == "module":
                try:
                    posix.stat(f"/sys/kernel/btf/{what}")
                    result = True
                except (OSError, ValueError):  # not there; a NUL in the name
                    result = False
            elif kind == "symbol" and isinstance(what, int):
                result = self.symbol(what) is not None
            elif kind == "slot" and isinstance(what, int):
                return 0 <= what < len(self.slots) and self.slots[what] >= 0
            else:
                raise PlanError(f"{condition!r} is no condition")
            self._conditions[condition] = result
        return self._conditions[condition]


def _leads_on(error: PybpfError, on: tuple[int, ...]) -> bool:
    """Whether an alternative's failure allows the next one to be tried."""
    if on:
        return isinstance(error, KernelError) and error.errno in on
    return isinstance(error, (VerifierError, SymbolNotFoundError))


_STEPS: dict[type, Callable[[Executor, Any], None]] = {
    _ops.BtfLoad: _steps.btf_load,
    _ops.Lookup: _steps.lookup,
    _ops.MapCreate: _steps.map_create,
    _ops.ExclusiveMapCreate: _steps.map_create,
    _ops.MapFill: _steps.map_fill,
    _ops.KconfigFill: _steps.kconfig_fill,
    _ops.StructOpsFill: _steps.struct_ops_fill,
    _ops.RequireKernel: _steps.require_kernel,
    _ops.MapFreeze: _steps.map_freeze,
    _ops.ProgLoad: _steps.prog_load,
    _ops.LinkCreate: _steps.link_create,
    _ops.Pin: _steps.pin,
    _ops.Choose: Executor._choose,
    _ops.When: Executor._when,
}
