# SPDX-License-Identifier: BSD-2-Clause
"""The live result of a Plan: its maps, programs, links and variables, closed in a fixed order."""

from __future__ import annotations

import os
import sys

from pybpf.errors import KernelError, UsageError
from pybpf.kernel import layout as _layout
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.kernel.program import Program
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal, Self

    from pybpf.kernel.object import KernelObject
    from pybpf.plan.ops import Plan
    from pybpf.plan.run import Executor

__all__ = ["Object", "Variables"]


class Object:
    """Live maps, programs and links by name; made by ``pybpf.plan.run.run``.

    maps, programs, links: {name: live object}. A name whose operation did not run (a condition
    of the Plan) is not there. vars: the object's global variables. layouts: {type name: layout}.
    arenas: {name: (address, bytes)}, see pybpf.kernel.arena. choices: which alternative each
    Choose of the Plan took. logs: verifier logs asked for.

    close() closes links first, in the reverse order of their making, then programs, maps and BTF;
    closing a link detaches its program unless the link is pinned. Leaving a ``with`` block
    closes; an Object that is collected closes too.
    """

    __slots__ = (
        "_attached", "_executor", "_link_slots", "_others", "arenas", "choices", "layouts", "links",
        "logs", "maps", "name", "notes", "plan", "programs", "vars",
    )  # fmt: skip

    def __init__(self, plan: Plan, executor: Executor) -> None:
        self._executor: Executor | None = executor
        self.plan = plan
        self.name = plan.name
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, Program] = {}
        self.links: dict[str, Link] = {}
        self._link_slots: dict[str, int] = {}
        self._attached = False
        self.layouts = plan.layouts
        self.choices = executor.choices
        self.logs = executor.logs
        self.notes = executor.notes
        # Alternatives may give one slot several names: then all of them are one live object.
        owned: dict[int, Any] = {}
        for name, (slot, key, value) in plan.maps.items():
            if executor.slots[slot] >= 0:
                if slot not in owned:
                    owned[slot] = Map(
                        executor.slots[slot], name, key_layout=key, value_layout=value
                    )
                self.maps[name] = owned[slot]
        for name, slot in plan.programs.items():
            if executor.slots[slot] >= 0:
                if slot not in owned:
                    owned[slot] = Program(executor.slots[slot], name)
                self.programs[name] = owned[slot]
        # BTF objects and templates of inner maps: nobody asks for them by name.
        self._others = [
            entry[1]
            for entry in executor.journal
            if entry[0] == "fd" and isinstance(entry[1], int) and entry[1] not in owned
        ]
        # {name: (address, bytes)} of the arenas in this process' memory; close() unmaps them.
        self.arenas: dict[str, tuple[int, int]] = {}
        places = {entry[1]: entry[2:] for entry in executor.journal if entry[0] == "arena"}
        for name, (slot, _key, _value) in plan.maps.items():
            if slot in places:
                self.arenas[name] = places[slot]  # type: ignore[assignment]
        self.vars = Variables(plan, self.maps)
        # From here on this object owns the fds; pins that were made stay.
        executor.journal.clear()

    # --- attaching ----------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether anything is attached, by ``attach`` or ``attach_program``."""
        return self._executor is not None and bool(self._executor.journal)

    def attach(self) -> Self:
        """Run the Plan's attach operations: all succeed, or all are undone and the error raised."""
        executor = self._alive()
        if self._attached:
            raise UsageError("the object is attached already", object=self.name)
        mark = len(executor.journal)
        try:
            executor.execute(self.plan.attach)
        except BaseException as error:
            executor.undo(mark, error)
            raise
        self._attached = True
        for name, slot in self.plan.links.items():
            if executor.slots[slot] >= 0:
                self._keep_link(name, slot)
        return self

    def attach_program(
        self,
        name: str,
        target: Any = None,
        *,
        how: str | None = None,
        attach_type: int | None = None,
        flags: int = 0,
        cookie: int = 0,
        **extra: int,
    ) -> Link | None:
        """Attach one program to what its section leaves open; may be called several times.

        target: an interface ("eth0"), a cgroup2 directory, a network namespace file ("/proc/self/
        ns/net"), "ipv4/local_in" of netfilter, "path:function" of a uprobe, a function or pattern
        of a kprobe; a map (its name here, or a Map) of sk_msg, sk_skb and iterators over a map's
        elements; the fd of a perf event. how: as in pybpf.plan.attach, if not the section's own.
        attach_type: if not the program's own (a tc program's direction). cookie: what
        bpf_get_attach_cookie gives the program. extra: further fields of BPF_LINK_CREATE with
        "__" for the dot (netfilter__priority=-100), and ``pid`` of user probes.

        The link is in ``links`` under the program's name (or "name.2" …); None where the kernel
        has no link there (``how="prog_attach"``). ``detach`` and ``close`` end all of them.
        """
        from pybpf.plan import attach as _attach
        from pybpf.plan import ops as _ops

        executor = self._alive()
        program = _named(self.programs, name, "program")
        load = _load_of(self.plan.ops, executor, self.plan.programs[name], name)
        how = how or _attach.how_of(load.type, load.expected_attach_type, load.section)
        if how is None:
            raise UsageError(
                f"a program of section {load.section!r} is not attached by a link",
                program=name, hint="pybpf.plan.attach says what is done with it instead.",
            )  # fmt: skip
        program.fileno()
        fields = {key.replace("__", "."): value for key, value in extra.items()}
        if cookie:
            if how not in _attach.COOKIES:
                raise UsageError(f"links of {how} have no cookie", program=name)
            fields[_attach.COOKIES[how]] = cookie
        if how == "iter" and target is None:
            how = "link"
        mark = len(executor.journal)
        try:
            if how in ("sockmap", "iter"):
                target = self._map_slot(executor, target)
            elif target is not None and not isinstance(target, (str, int)):
                target = target.fileno() if hasattr(target, "fileno") else os.fspath(target)
            executor.slots.append(-1)
            slot = len(executor.slots) - 1
            executor.execute((
                _ops.LinkCreate(
                    dst=slot, name=name, prog=self.plan.programs[name], how=how, target=target,
                    attach_type=load.expected_attach_type if attach_type is None else attach_type,
                    flags=flags, extra=tuple(fields.items()),
                ),
            ))  # fmt: skip
        except BaseException as error:
            executor.undo(mark, error)
            raise
        if executor.slots[slot] < 0:
            return None
        number, key = 1, name
        while key in self.links:
            number += 1
            key = f"{name}.{number}"
        return self._keep_link(key, slot)

    def _keep_link(self, name: str, slot: int) -> Link:
        assert self._executor is not None
        self._link_slots[name] = slot
        self.links[name] = Link(self._executor.slots[slot], name)
        return self.links[name]

    def _map_slot(self, executor: Executor, target: Any) -> int:
        """The slot of one of our maps, or a new one for a further fd of somebody's Map."""
        found = _named(self.maps, target, "map") if isinstance(target, str) else target
        if not isinstance(found, Map):
            raise UsageError(f"a map is needed as the target, not {target!r}")
        executor.slots.append(-1)
        executor._fill_slot(len(executor.slots) - 1, found.dup())
        return len(executor.slots) - 1

    def detach(self) -> None:
        """Undo ``attach`` and ``attach_program``, last link first: links are closed, pins that
        attach made are removed."""
        executor = self._alive()
        self._give_back_links(executor)
        executor.undo(0)
        self._attached = False

    def _give_back_links(self, executor: Executor) -> None:
        """Links' fds go back to the executor's slots, except those that the user has closed."""
        for name, link in self.links.items():
            if link.closed:
                executor.slots[self._link_slots[name]] = -1
            link.fd = -1
        self.links.clear()

    # --- the end ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._executor is None

    def _alive(self) -> Executor:
        if self._executor is None:
            raise UsageError("the object is closed", object=self.name)
        return self._executor

    def close(self) -> None:
        """Close links (last made first), programs, maps, BTF. Pins stay; so does what they hold."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        self.vars.unmap()
        self._give_back_links(executor)
        fds: list[int] = []
        failed: Exception | None = None
        for address, size in set(self.arenas.values()):
            from pybpf.kernel import arena

            try:
                arena.unmap(address, size)
            except KernelError as error:
                failed = error
        self.arenas.clear()
        for entry in reversed(executor.journal):
            if entry[0] == "fd" and isinstance(entry[1], int):
                fds.append(executor.slots[entry[1]])
            elif entry[0] in ("attached", "registered"):
                try:
                    executor._undo_one(entry)
                except (OSError, KernelError) as error:
                    failed = failed or error
        live: list[KernelObject] = [*reversed(self.programs.values())]
        live += reversed(self.maps.values())
        for thing in live:
            if not thing.closed:
                fds.append(thing.fd)
                thing.fd = -1
        fds += [executor.slots[slot] for slot in reversed(self._others)]
        for fd in fds:
            try:
                if fd >= 0:
                    os.close(fd)
            except OSError as error:  # go on: the rest must be closed too
                failed = failed or error
        if failed is not None:
            raise failed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_executor", None) is not None:
            self.close()

    # --- handing over -------------------------------------------------------------------------

    def inherit(
        self, *, links: bool = True, maps: Iterable[str] = (), programs: Iterable[str] = ()
    ) -> dict[str, dict[str, int]]:
        """Further fds that stay open across exec: {"links": {name: fd}, "maps": …, "programs": …}.

        They belong to the caller, who closes them if the exec fails; this object goes on as it is.
        The successor opens them with ``Link.from_fd`` and so on, and checks what they are.
        """
        made: dict[str, dict[str, int]] = {"links": {}, "maps": {}, "programs": {}}
        try:
            if links:
                for name, link in self.links.items():
                    made["links"][name] = link.dup(inheritable=True)
            for name in maps:
                made["maps"][name] = _named(self.maps, name, "map").dup(inheritable=True)
            for name in programs:
                program = _named(self.programs, name, "program")
                made["programs"][name] = program.dup(inheritable=True)
        except BaseException:
            for part in made.values():
                for fd in part.values():
                    os.close(fd)
            raise
        return made

    def detach_fds(self) -> dict[str, dict[str, int]]:
        """Give all fds to the caller, {"links": {name: fd}, "maps": …, "programs": …}, and close
        this object without closing them (close-on-exec stays set; BTF fds are closed)."""
        self._alive()
        self.vars.unmap()
        parts: dict[str, dict[str, Any]] = {
            "links": self.links, "maps": self.maps, "programs": self.programs
        }  # fmt: skip
        out = {
            part: {name: live.detach_fd() for name, live in things.items() if not live.closed}
            for part, things in parts.items()
        }
        # The links are closed for this object now, so close() leaves their fds alone.
        self.close()
        return out

    def __repr__(self) -> str:
        state = "closed" if self.closed else "attached" if self.attached else "loaded"
        return (
            f"<Object {self.name} {state}: {len(self.maps)} maps, {len(self.programs)} programs, "
            f"{len(self.links)} links>"
        )


def _load_of(operations: Any, executor: Executor, slot: int, name: str) -> Any:
    """The ProgLoad that filled a slot: with alternatives, that of the one that was taken."""
    from pybpf.plan import ops as _ops

    for op in operations:
        found = None
        if isinstance(op, _ops.ProgLoad) and op.dst == slot:
            return op
        if isinstance(op, _ops.Choose):
            taken = dict(op.alternatives).get(executor.choices.get(op.label, ""), ())
            found = _load_of(taken, executor, slot, "")
        elif isinstance(op, _ops.When):
            branch = op.then if executor.holds(op.condition) else op.otherwise
            found = _load_of(branch, executor, slot, "")
        if found is not None:
            return found
    if name:
        raise UsageError("no operation of the Plan has loaded it", program=name)
    return None


def _named(things: dict[str, Any], name: str, what: str) -> Any:
    if name not in things:
        raise UsageError(f"there is no {what} {name!r}; there are: {', '.join(things)}")
    return things[name]


class Variables:
    """Global variables of a live object by name: ``obj.vars["armed"] = 1``.

    Values are Python values by the variable's layout, bytes where it has none. Where the map can
    be mapped into memory (5.5 and BPF_F_MMAPABLE) a variable of 1, 2, 4 or 8 bytes at an aligned
    place is written with a single store, which a program sees whole or not at all. Elsewhere the
    map's whole value is read, changed and written back: not atomic towards programs.

    ``unmap()`` gives the mappings back; the next access maps again.
    """

    __slots__ = ("_maps", "_plan", "_views")

    # No reference to the Object: a cycle would delay its end until the garbage collector runs.
    def __init__(self, plan: Plan, maps: dict[str, Map]) -> None:
        self._plan = plan
        self._maps = maps
        self._views: dict[str, tuple[mmap.mmap, bool]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._plan.variables

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan.variables)

    def __len__(self) -> int:
        return len(self._plan.variables)

    def keys(self) -> Iterator[str]:
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        for name in self:
            if self._plan.variables[name][0] in self._maps:
                yield name, self[name]

    def _place(self, name: str) -> tuple[Map, str, int, int, Any]:
        variables = self._plan.variables
        if name not in variables:
            raise UsageError(
                f"there is no variable {name!r}; there are: {', '.join(variables)}",
                object=self._plan.name,
            )
        map_name, offset, size, layout = variables[name]
        if map_name not in self._maps:
            raise UsageError(f"the map {map_name} of variable {name} was not made or is closed")
        return self._maps[map_name], map_name, offset, size, layout

    def _view(self, found: Map, name: str) -> mmap.mmap | None:
        """The mapping of a data map, None where it cannot be mapped."""
        found.fileno()
        if name not in self._views:
            if not found.flags & abi.BPF_F_MMAPABLE:
                return None
            writable = not found.flags & abi.BPF_F_RDONLY_PROG
            self._views[name] = found.mmap(writable=writable), writable
        return self._views[name][0]

    def __getitem__(self, name: str) -> Any:
        found, map_name, offset, size, layout = self._place(name)
        view = self._view(found, map_name)
        if view is not None:
            data = _load(view, offset, size)
        else:
            data = _raw(found).lookup(bytes(found.key_size))[offset : offset + size]
        return data if layout is None else _layout.decode(layout, data, 0, sys.byteorder)

    def __setitem__(self, name: str, value: Any) -> None:
        found, map_name, offset, size, layout = self._place(name)
        data = _encode(name, value, size, layout)
        if found.flags & abi.BPF_F_RDONLY_PROG:
            raise UsageError(
                f"variable {name!r} is in {map_name}, which is read-only once it is loaded; "
                "set it in the spec before loading",
                object=self._plan.name,
            )
        view = self._view(found, map_name)
        if view is not None:
            _store(view, offset, data)
            return
        raw = _raw(found)
        key = bytes(found.key_size)
        whole = bytearray(raw.lookup(key))
        whole[offset : offset + size] = data
        raw.update(key, whole)

    def unmap(self) -> None:
        """Take the data maps out of this process' memory (design: once a guard is filled, what is
        mapped could be found through /proc/PID/mem)."""
        while self._views:
            _, (view, _writable) = self._views.popitem()
            view.close()


def _encode(name: str, value: Any, size: int, layout: Any) -> bytes:
    try:
        if layout is not None:
            data = _layout.encode(layout, value, sys.byteorder)
        elif isinstance(value, (bytes, bytearray, memoryview)):
            data = bytes(value)
        elif isinstance(value, int) and size in (1, 2, 4, 8):
            data = value.to_bytes(size, sys.byteorder, signed=value < 0)
        else:
            raise UsageError(f"bytes are needed, not {type(value).__name__}")
    except OverflowError:
        raise UsageError(f"{value} does not fit into {size} bytes", variable=name) from None
    except UsageError as error:
        raise error.at(variable=name)  # noqa: B904
    if len(data) != size:
        raise UsageError(f"{len(data)} bytes given where {size} are needed", variable=name)
    return data


def _raw(found: Map) -> Map:
    """A view of the same fd without layouts; its fd is taken away from it after use."""
    view = _Borrowed(found.fd, found.name)
    view._set_shape(found.type, found.key_size, found.value_size, found.max_entries, found.flags)
    return view


class _Borrowed(Map):
    """A Map that does not own its fd."""

    __slots__ = ()

    def close(self) -> None:
        self.fd = -1


_CASTS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _load(view: mmap.mmap, offset: int, size: int) -> bytes:
    if size in _CASTS and offset % size == 0:
        with memoryview(view) as whole, whole.cast(_CASTS[size]) as words:
            return int(words[offset // size]).to_bytes(size, sys.byteorder)
    return view[offset : offset + size]


def _store(view: mmap.mmap, offset: int, data: bytes) -> None:
    """Store bytes; sizes 1, 2, 4, 8 at an aligned offset by one machine store (the item
    assignment of a cast memoryview copies a C integer of that size)."""
    size = len(data)
    if size in _CASTS and offset % size == 0:
        with memoryview(view) as whole, whole.cast(_CASTS[size]) as words:
            words[offset // size] = int.from_bytes(data, sys.byteorder)
        return
    view[offset : offset + size] = data
