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
import struct

from pybpf.errors import KernelError, PlanError, PybpfError, SymbolNotFoundError, VerifierError
from pybpf.kernel import create as _create
from pybpf.kernel.cpus import possible_cpus
from pybpf.plan import ops as _ops
from pybpf.plan.live import Object
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Symbol = tuple[int, int]  # (fd of the module's BTF, 0 for vmlinux; type id)

__all__ = ["Executor", "run"]

# What mapping an arena a second time fails with: EBUSY, EEXIST, EINVAL.
_MAPPED_ALREADY = frozenset((16, 17, bpf.EINVAL))


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
    reused: slots of maps that were there already (not filled, not frozen).
    """

    __slots__ = (
        "_conditions", "_log_level", "_map_names", "_object", "_percpu", "_program_names",
        "_reuse", "_targets", "_token", "_trace",
        "addresses", "choices", "failures", "journal", "logs", "notes", "reused", "slots",
        "symbols",
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
        self._token = token
        self.slots = [-1] * plan.slots
        self.symbols: list[Symbol | None] = [None] * plan.symbols
        self.journal: list[tuple[object, ...]] = []
        self.choices: dict[str, str] = {}
        self.failures: list[tuple[str, str, PybpfError]] = []
        self.reused: set[int] = set()
        self.logs: dict[str, str] = {}
        self.notes: list[str] = []
        self._object = plan.name
        self._program_names = {slot: name for name, slot in plan.programs.items()}
        self._map_names = {place[0]: name for name, place in plan.maps.items()}
        self._conditions: dict[tuple[str, str | int], bool] = {}
        self._log_level = log_level
        self._percpu: set[int] = set()
        self._trace = trace
        self._targets = dict(targets or {})
        maps = maps or {}
        for what, names, there in (
            ("program", self._targets, plan.programs), ("map", maps, plan.maps)
        ):  # fmt: skip
            for name in names:
                if name not in there:
                    raise PlanError(
                        f"the Plan has no {what} {name!r}; it has {', '.join(there)}",
                        object=plan.name,
                    )
        self.addresses: dict[str, int] = {}
        self._reuse = {plan.maps[name][0]: fd for name, fd in maps.items()}

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
                self._undo_one(entry)
            except (OSError, KernelError) as error:
                # Go on: the rest must be undone too. Tell it with the error that led here.
                self.notes.append(f"could not undo {entry[0]}: {error}")
                if cause is not None:
                    cause.add_note(self.notes[-1])

    def _undo_one(self, entry: tuple[object, ...]) -> None:
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

    def _fill_slot(self, slot: int, fd: int) -> None:
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

    # --- operations ---------------------------------------------------------------------------

    def _btf_load(self, op: _ops.BtfLoad) -> None:
        try:
            self._fill_slot(op.dst, _create.btf_fd(op.data, self._token))
        except KernelError as error:
            if not op.optional:
                raise
            self.notes.append(f"went on without BTF: {error}")

    def _lookup(self, op: _ops.Lookup) -> None:
        from pybpf.kernel import btf_lookup

        answers = btf_lookup.resolve([(name, kind, mod) for _, name, kind, mod, _ in op.names])
        missing = []
        for (number, name, kind, module, weak), answer in zip(op.names, answers, strict=True):
            self.symbols[number] = answer
            if answer is None and not weak:
                where = f" (module {module})" if module else ""
                missing.append(f"{btf_lookup.KIND_NAMES.get(kind, f'kind {kind}')} {name}{where}")
        if missing:
            # Their fds, if any, go with the others at the end of the run or with an undo.
            raise SymbolNotFoundError(
                f"the running kernel ({posix.uname().release}) has no {', '.join(missing)}.",
                names=tuple(missing),
            )

    def _map_create(self, op: _ops.MapCreate) -> None:
        entries = op.max_entries
        if entries == _ops.NR_CPUS:
            entries = possible_cpus()
        reuse = self._reuse.get(op.dst)
        if reuse is not None:
            self._reuse_map(op, posix.dup(reuse), entries, "the fd given")
            return
        if op.pin_path is not None:
            try:
                fd = bpf.obj_get(op.pin_path)
            except KernelError as error:
                if error.errno != bpf.ENOENT:
                    raise error.at(map=op.name, path=op.pin_path)  # noqa: B904
            else:
                self._reuse_map(op, fd, entries, op.pin_path)
                return
        btf = self.slots[op.btf] if op.btf is not None else -1
        with_btf = (
            btf >= 0
            and op.type not in _create.MAPS_WITHOUT_BTF
            and bool(op.key_type_id or op.value_type_id)
        )
        attributes: dict[str, int | None] = {}
        if op.inner is not None:
            attributes["inner_map_fd"] = self.fd(op.inner, "inner map")
        if op.value_symbol is not None:
            symbol = self.symbol(op.value_symbol)
            if symbol is None:
                raise PlanError("the type of its value is not in the kernel", map=op.name)
            attributes["vmlinux_value_type_id"] = symbol[1]
            attributes["value_type_btf_obj_fd"] = symbol[0]
            with_btf = False
            attributes["btf_fd"] = max(btf, 0)
        if op.numa_node is not None:
            attributes["numa_node"] = op.numa_node
        if with_btf:
            attributes["btf_fd"] = btf
            attributes["key_type_id"] = op.key_type_id
            attributes["value_type_id"] = op.value_type_id
        fd = self._create(op, entries, attributes)
        self._fill_slot(op.dst, fd)
        if op.type == abi.BPF_MAP_TYPE_ARENA:
            self._map_arena(op.dst, entries, op.extra)
        elif op.type == abi.BPF_MAP_TYPE_PERCPU_ARRAY:
            self._percpu.add(op.dst)
        if op.pin_path is not None:
            self._pin_path(fd, op.pin_path, map=op.name)

    def _map_arena(self, slot: int, pages: int, address: int) -> None:
        """An arena needs its address before a program of it is loaded."""
        from pybpf.kernel import arena

        try:
            where, size = arena.map_fd(self.slots[slot], pages, address)
        except KernelError as error:
            raise error.at(map=self._slot_name(slot))  # noqa: B904
        self.journal.append(("arena", slot, where, size))

    def _create(
        self, op: _ops.MapCreate, entries: int, attributes: dict[str, int | None]
    ) -> int:
        all_of_it: dict[str, Any] = {
            "name": op.name, "flags": op.flags, "extra": op.extra, **attributes
        }  # fmt: skip
        if self._token:
            all_of_it["token_fd"] = self._token
        if isinstance(op, _ops.ExclusiveMapCreate):
            all_of_it["excl_prog_hash"] = op.program_hash
        try:
            return _create.map_fd(op.type, op.key_size, op.value_size, entries, **all_of_it)
        except KernelError as error:
            older = _older(error)
            fd: int = older.create_map(op, entries, all_of_it, error, self.notes)
            return fd

    def _reuse_map(self, op: _ops.MapCreate, fd: int, entries: int, where: str) -> None:
        self._fill_slot(op.dst, fd)
        self.reused.add(op.dst)
        from pybpf.plan import premises

        premises.same_map(op, fd, entries, where)
        if op.type == abi.BPF_MAP_TYPE_ARENA:
            try:
                self._map_arena(op.dst, entries, op.extra)
            except KernelError as error:
                # Whoever made it may have mapped it, in this process or another; then it has the
                # address that its programs need. The errno depends on where and on map_extra.
                if error.errno not in _MAPPED_ALREADY:
                    raise

    def _map_fill(self, op: _ops.MapFill) -> None:
        if op.map in self.reused:
            return
        fd = self.fd(op.map, "map")
        for entry in self.journal:
            if entry[0] == "arena" and entry[1] == op.map:
                from pybpf.kernel import arena

                arena.fill(entry[2], entry[3], op.entries)  # type: ignore[arg-type]
                return
        for key, value in op.entries:
            if isinstance(value, int):
                value = struct.pack("=i", self.fd(value))
            elif op.map in self._percpu:
                # One value for all of them. The kernel takes that as it is only since
                # BPF_F_ALL_CPUS (7.0); padded and repeated it is what every kernel takes.
                from pybpf.kernel.cpus import possible_cpus

                value = value.ljust(-(-len(value) // 8) * 8, b"\0") * possible_cpus()
            try:
                bpf.map_update(fd, key, value)
            except KernelError as error:
                raise error.at(map=self._slot_name(op.map), key=key.hex())  # noqa: B904

    def _kconfig_fill(self, op: _ops.KconfigFill) -> None:
        if op.map in self.reused:
            return
        from pybpf.plan import kconfig

        version = kconfig.parse_release(posix.uname().release)
        data = kconfig.contents(op.values, version, kconfig.running_config)
        try:
            bpf.map_update(self.fd(op.map, "map"), bytes(4), data)
        except KernelError as error:
            raise error.at(map=self._slot_name(op.map))  # noqa: B904

    def _struct_ops_fill(self, op: _ops.StructOpsFill) -> None:
        data = bytearray(op.data)
        for offset, slot in op.programs:
            struct.pack_into("=Q", data, offset, self.fd(slot, "program"))
        # An fd of its own: the map's may be closed by the user before the value is deleted.
        fd = posix.dup(self.fd(op.map, "map"))
        try:
            bpf.map_update(fd, bytes(4), data)
            if op.register:
                self.journal.append(("registered", fd))
                fd = -1
        except KernelError as error:
            raise error.at(map=self._slot_name(op.map))  # noqa: B904
        finally:
            if fd >= 0:
                posix.close(fd)

    def _map_freeze(self, op: _ops.MapFreeze) -> None:
        if op.map in self.reused:
            return
        try:
            bpf.map_freeze(self.fd(op.map, "map"))
        except KernelError as error:
            raise error.at(map=self._slot_name(op.map))  # noqa: B904

    def _slot_name(self, slot: int) -> str:
        return self._map_names.get(slot) or self._program_names.get(slot) or f"in slot {slot}"

    def _prog_load(self, op: _ops.ProgLoad) -> None:
        try:
            self._load(op)
        except PybpfError as error:
            if isinstance(error, KernelError) and error.errno == bpf.E2BIG and op.core_relos:
                error.hint = error.hint or (
                    f"Linux {posix.uname().release}, if older than 5.17, does no relocations "
                    "itself: make the Plan on this kernel with relocate=\"python\"."
                )
            raise error.at(program=op.name, section=op.section or None)  # noqa: B904

    def _load(self, op: _ops.ProgLoad) -> None:
        fd_array = [self.fd(slot, "fd_array") for slot in op.fd_array]
        code: bytes | bytearray = op.insns
        if op.patches:
            code = bytearray(code)
            from pybpf.plan import patch

            patch.apply(self, code, op.patches, fd_array)
        fields: dict[str, int | bytes] = {
            "prog_type": op.type,
            "expected_attach_type": op.expected_attach_type,
            "prog_flags": op.flags,
            "kern_version": op.kern_version,
            "prog_ifindex": op.ifindex,
            "prog_name": bpf.object_name(op.name),
            "insn_cnt": len(code) // 8,
        }
        if self._token:
            fields["prog_token_fd"] = self._token
            fields["prog_flags"] = op.flags | abi.BPF_F_TOKEN_FD
        # Pointers are kept in this list until the load is over.
        held = []
        for field, data in (("insns", code), ("license", op.license.encode() + b"\0")):
            held.append(Pointer(data))
            fields[field] = held[-1].address
        if fd_array:
            held.append(Pointer(struct.pack(f"={len(fd_array)}I", *fd_array)))
            fields["fd_array"] = held[-1].address
        if op.btf is not None and self.slots[op.btf] >= 0:
            fields["prog_btf_fd"] = self.slots[op.btf]
            if op.core_relos and not op.func_info and not op.line_info:
                # Up to 6.12 at least, check_btf_info returns early then and leaves the
                # relocations undone (kernel/bpf/verifier.c).
                raise PlanError("core_relos are ignored without func_info or line_info")
            for name, data, size in (
                ("func_info", op.func_info, op.func_info_size),
                ("line_info", op.line_info, op.line_info_size),
                ("core_relo", op.core_relos, op.core_relo_size),
            ):
                if data:
                    held.append(Pointer(data))
                    fields["core_relos" if name == "core_relo" else name] = held[-1].address
                    fields[name + "_cnt"] = len(data) // size
                    fields[name + "_rec_size"] = size
        elif op.core_relos:
            raise PlanError("its CO-RE relocations need the object's BTF, which was not loaded")
        if op.name in self._targets:
            from pybpf.kernel.btf import function_of

            target = self._targets[op.name]
            fields["attach_prog_fd"] = target
            fields["attach_btf_id"] = function_of(target, op.section.rpartition("/")[2])
        elif op.attach_symbol is not None:
            symbol = self.symbol(op.attach_symbol)
            if symbol is None:
                raise PlanError("what it attaches to is not in the kernel")
            fields["attach_btf_obj_fd"], fields["attach_btf_id"] = symbol
        elif op.attach_btf_id:
            fields["attach_btf_id"] = op.attach_btf_id
        if op.attach_prog is not None:
            fields["attach_prog_fd"] = self.fd(op.attach_prog, "program")
        log: list[str] = []
        try:
            fd = _create.program_fd(fields, log_level=self._log_level, log_out=log)
        except KernelError as error:
            older = _older(error)
            fd = older.load_program(op, fields, code, error, self._log_level, log, self.notes)
        del held
        if log:
            self.logs[op.name] = log[0]
        self._fill_slot(op.dst, fd)

    def _link_create(self, op: _ops.LinkCreate) -> None:
        try:
            program = self.fd(op.prog, "program")
            if op.how == "link" and (op.target is None or isinstance(op.target, int)):
                fd = bpf.link_create(
                    program, op.target or 0, op.attach_type, flags=op.flags, **dict(op.extra)
                )
            elif op.how == "raw_tracepoint" and not isinstance(op.target, int):
                cookie = dict(op.extra).get("raw_tracepoint.cookie", 0)
                fd = bpf.raw_tracepoint_open(program, op.target, cookie)
            else:
                from pybpf.plan import attach

                attach.create(self, op, program)
                return
        except PybpfError as error:
            raise error.at(link=op.name)  # noqa: B904
        self._fill_slot(op.dst, fd)

    def _pin(self, op: _ops.Pin) -> None:
        self._pin_path(self.fd(op.src), op.path)

    def _pin_path(self, fd: int, path: str, **where: str) -> None:
        try:
            bpf.obj_pin(fd, path)
        except KernelError as error:
            from pybpf.kernel.object import pin_hint

            error.hint = pin_hint(path) or error.hint
            raise error.at(**where, path=path)  # noqa: B904
        self.journal.append(("pin", path))

    def _require_kernel(self, op: _ops.RequireKernel) -> None:
        from pybpf.plan import premises

        premises.this_kernel(op)

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
                    raise error.at(choice=f"{op.label}: {label}")  # noqa: B904
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


def _older(error: KernelError) -> Any:
    """pybpf.plan.older; ``error`` where it cannot be imported, as when the initramfs is gone."""
    try:
        from pybpf.plan import older
    except ImportError:
        raise error from None
    return older


def _leads_on(error: PybpfError, on: tuple[int, ...]) -> bool:
    """Whether an alternative's failure allows the next one to be tried."""
    if on:
        return isinstance(error, KernelError) and error.errno in on
    return isinstance(error, (VerifierError, SymbolNotFoundError))


_STEPS: dict[type, Callable[[Executor, object], None]] = {
    _ops.BtfLoad: Executor._btf_load,  # type: ignore[dict-item]
    _ops.Lookup: Executor._lookup,  # type: ignore[dict-item]
    _ops.MapCreate: Executor._map_create,  # type: ignore[dict-item]
    _ops.MapFill: Executor._map_fill,  # type: ignore[dict-item]
    _ops.KconfigFill: Executor._kconfig_fill,  # type: ignore[dict-item]
    _ops.StructOpsFill: Executor._struct_ops_fill,  # type: ignore[dict-item]
    _ops.ExclusiveMapCreate: Executor._map_create,  # type: ignore[dict-item]
    _ops.RequireKernel: Executor._require_kernel,  # type: ignore[dict-item]
    _ops.MapFreeze: Executor._map_freeze,  # type: ignore[dict-item]
    _ops.ProgLoad: Executor._prog_load,  # type: ignore[dict-item]
    _ops.LinkCreate: Executor._link_create,  # type: ignore[dict-item]
    _ops.Pin: Executor._pin,  # type: ignore[dict-item]
    _ops.Choose: Executor._choose,  # type: ignore[dict-item]
    _ops.When: Executor._when,  # type: ignore[dict-item]
}
