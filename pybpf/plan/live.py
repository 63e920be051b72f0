# SPDX-License-Identifier: BSD-2-Clause
"""The live result of a Plan: its maps, programs, links and variables, closed in a fixed order."""

from __future__ import annotations

import posix

from pybpf.errors import KernelError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

    from pybpf.kernel.link import Link
    from pybpf.kernel.map import Map
    from pybpf.kernel.object import KernelObject
    from pybpf.kernel.program import Program
    from pybpf.plan.ops import Plan
    from pybpf.plan.run import Executor
    from pybpf.plan.variables import Variables

__all__ = ["Object"]


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
        "_attached", "_executor", "_link_slots", "_links", "_live", "_new_links", "_others",
        "_vars", "arenas", "choices", "layouts", "logs", "name", "notes", "plan",
    )  # fmt: skip

    def __init__(self, plan: Plan, executor: Executor) -> None:
        self._executor: Executor | None = executor
        self.plan = plan
        self.name = plan.name
        # Live objects are made when somebody asks for one: until then fds are in the slots.
        self._live: tuple[dict[str, Map], dict[str, Program]] | None = None
        self._links: dict[str, Link] = {}
        self._new_links: dict[str, int] = {}
        self._link_slots: dict[str, int] = {}
        self._vars: Variables | None = None
        self._attached = False
        self.layouts = plan.layouts
        self.choices = executor.choices
        self.logs = executor.logs
        self.notes = executor.notes
        named = {place[0] for place in plan.maps.values()}
        named.update(plan.programs.values())
        # BTF objects and templates of inner maps: nobody asks for them by name.
        self._others = []
        # {name: (address, bytes)} of the arenas in this process' memory; close() unmaps them.
        self.arenas: dict[str, tuple[int, int]] = {}
        for entry in executor.journal:
            if entry[0] == "fd" and isinstance(entry[1], int) and entry[1] not in named:
                self._others.append(entry[1])
            elif entry[0] == "arena":
                for name, place in plan.maps.items():
                    if place[0] == entry[1]:
                        self.arenas[name] = entry[2:]  # type: ignore[assignment]
        # From here on this object owns the fds; pins that were made stay.
        executor.journal.clear()

    def _objects(self) -> tuple[dict[str, Map], dict[str, Program]]:
        if self._live is None:
            from pybpf.kernel.map import Map
            from pybpf.kernel.program import Program

            maps: dict[str, Map] = {}
            programs: dict[str, Program] = {}
            slots = self._executor.slots if self._executor is not None else []
            # Alternatives may give one slot several names: then all of them are one live object.
            owned: dict[int, Any] = {}
            for name, (slot, key, value) in self.plan.maps.items():
                if slots and slots[slot] >= 0:
                    if slot not in owned:
                        owned[slot] = Map(slots[slot], name, key_layout=key, value_layout=value)
                    maps[name] = owned[slot]
            for name, slot in self.plan.programs.items():
                if slots and slots[slot] >= 0:
                    if slot not in owned:
                        owned[slot] = Program(slots[slot], name)
                    programs[name] = owned[slot]
            self._live = maps, programs
        return self._live

    @property
    def maps(self) -> dict[str, Map]:
        return self._objects()[0]

    @property
    def programs(self) -> dict[str, Program]:
        return self._objects()[1]

    @property
    def links(self) -> dict[str, Link]:
        if self._new_links:
            from pybpf.kernel.link import Link

            slots = self._alive().slots
            for name, slot in self._new_links.items():
                self._links[name] = Link(slots[slot], name)
            self._new_links = {}
        return self._links

    @property
    def vars(self) -> Variables:
        if self._vars is None:
            from pybpf.plan.variables import Variables

            self._vars = Variables(self.plan, self.maps)
        return self._vars

    def fds(self) -> dict[str, dict[str, int]]:
        """{"maps": {name: fd}, "programs": …, "links": …} of what is live; the fds stay this
        object's. No live object is made for it."""
        slots = self._executor.slots if self._executor is not None else []
        if self._live is not None:
            maps = {name: one.fd for name, one in self._live[0].items() if not one.closed}
            programs = {name: one.fd for name, one in self._live[1].items() if not one.closed}
        else:
            maps = {name: slots[place[0]] for name, place in self.plan.maps.items() if slots}
            programs = {name: slots[slot] for name, slot in self.plan.programs.items() if slots}
        links = {name: one.fd for name, one in self._links.items() if not one.closed}
        links.update({name: slots[slot] for name, slot in self._new_links.items()})
        found = {"maps": maps, "programs": programs, "links": links}
        return {
            part: {name: fd for name, fd in places.items() if fd >= 0}
            for part, places in found.items()
        }

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
        from pybpf.plan import live_more

        return live_more.attach_program(
            self, name, target, how, attach_type, flags, cookie, extra
        )  # fmt: skip

    def _keep_link(self, name: str, slot: int) -> None:
        self._link_slots[name] = slot
        self._new_links[name] = slot

    def detach(self) -> None:
        """Undo ``attach`` and ``attach_program``, last link first: links are closed, pins that
        attach made are removed."""
        executor = self._alive()
        self._give_back_links(executor)
        executor.undo(0)
        self._attached = False

    def _give_back_links(self, executor: Executor) -> None:
        """Links' fds go back to the executor's slots, except those that the user has closed."""
        for name, link in self._links.items():
            if link.closed:
                executor.slots[self._link_slots[name]] = -1
            link.fd = -1
        self._links.clear()
        self._new_links.clear()

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
        if self._vars is not None:
            self._vars.unmap()
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
                    executor.undo_one(entry)
                except (OSError, KernelError) as error:
                    failed = failed or error
        if self._live is None:
            slots = [*reversed(self.plan.programs.values())]
            slots += [place[0] for place in reversed(self.plan.maps.values())]
            fds += [executor.slots[slot] for slot in dict.fromkeys(slots)]
            self._live = {}, {}
        live: list[KernelObject] = [*reversed(self._live[1].values())]
        live += reversed(self._live[0].values())
        for thing in live:
            if not thing.closed:
                fds.append(thing.fd)
                thing.fd = -1
        fds += [executor.slots[slot] for slot in reversed(self._others)]
        for fd in fds:
            try:
                if fd >= 0:
                    posix.close(fd)
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
        from pybpf.plan import live_more

        return live_more.inherit(self, links, maps, programs)

    def detach_fds(self) -> dict[str, dict[str, int]]:
        """Give all fds to the caller, {"links": {name: fd}, "maps": …, "programs": …}, and close
        this object without closing them (close-on-exec stays set; BTF fds are closed)."""
        from pybpf.plan import live_more

        return live_more.detach_fds(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "attached" if self.attached else "loaded"
        maps, programs, links = map(len, self.fds().values())
        return f"<Object {self.name} {state}: {maps} maps, {programs} programs, {links} links>"
