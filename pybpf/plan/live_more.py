# SPDX-License-Identifier: BSD-2-Clause
"""The rarer methods of a live Object: attaching single programs, handing fds over.

``pybpf.plan.live`` imports this when one of them is called.
"""

from __future__ import annotations

import posix

from pybpf.errors import KernelError, UsageError
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pybpf.kernel.link import Link
    from pybpf.kernel.program import Program
    from pybpf.plan.live import Object
    from pybpf.plan.run import Executor

__all__ = ["attach_program", "detach_fds", "inherit"]

_EBADF = 9
# What is done in place of attaching, by program type.
_INSTEAD = {
    abi.BPF_PROG_TYPE_SOCKET_FILTER: "Program.attach_socket gives it to a socket.",
    abi.BPF_PROG_TYPE_SK_REUSEPORT: "Program.attach_socket gives it to a socket.",
    abi.BPF_PROG_TYPE_SYSCALL: "Program.test_run runs it.",
}


def attach_program(
    live: Object,
    name: str,
    target: Any,
    how: str | None,
    attach_type: int | None,
    flags: int,
    cookie: int,
    extra: dict[str, int],
) -> Link | None:
    """See ``Object.attach_program``."""
    from pybpf.plan import attach as _attach
    from pybpf.plan import ops as _ops

    executor = live._alive()
    program: Program = _named(live, live.programs, name, "program")
    load = _load_of(live.plan.ops, executor, live.plan.programs[name], name)
    how = how or _attach.how_of(load.type, load.expected_attach_type, load.section)
    if how is None:
        raise UsageError(
            f"a program of section {load.section!r} is not attached by a link.",
            object=live.name, program=name,
            hint=_INSTEAD.get(load.type, "pybpf.plan.attach says what is done with it instead."),
        )  # fmt: skip
    program.fileno()
    fields = _fields(live, name, how, extra)
    if cookie:
        if how not in _attach.COOKIES:
            raise UsageError(f"links of {how} have no cookie", object=live.name, program=name)
        fields[_attach.COOKIES[how]] = cookie
    iterates = how == "iter" and target is None
    if iterates:
        how = "link"
    mark = len(executor.journal)
    try:
        if how in ("sockmap", "iter"):
            target = _map_slot(live, executor, target)
        elif target is not None and not isinstance(target, (str, int)):
            target = target.fileno() if hasattr(target, "fileno") else posix.fspath(target)
        executor.slots.append(-1)
        slot = len(executor.slots) - 1
        executor.execute((
            _ops.LinkCreate(
                dst=slot, name=name, prog=live.plan.programs[name], how=how, target=target,
                attach_type=load.expected_attach_type if attach_type is None else attach_type,
                flags=flags, extra=tuple(fields.items()),
            ),
        ))  # fmt: skip
    except BaseException as error:
        executor.undo(mark, error)
        if iterates and isinstance(error, KernelError) and error.errno == _EBADF:
            error.hint = "An iterator over a map's elements needs the map as its target."
        raise
    if executor.slots[slot] < 0:
        return None
    number, key = 1, name
    while key in live.links:
        number += 1
        key = f"{name}.{number}"
    live._keep_link(key, slot)
    return live.links[key]


def _fields(live: Object, name: str, how: str, extra: dict[str, int]) -> dict[str, int]:
    """Fields of BPF_LINK_CREATE, and pid of user probes. Raises UsageError."""
    from pybpf.sys.layouts import ATTR_LINK_CREATE

    fields = {key.replace("__", "."): value for key, value in extra.items()}
    known = {key for key in ATTR_LINK_CREATE if "." in key or key.startswith("iter_info")}
    if how.startswith(("uprobe", "uretprobe")):
        known.add("pid")
    for key, value in fields.items():
        if key not in known:
            raise UsageError(
                f"a link of {how} has no {key.replace('.', '__')!r}.",
                hint="There are: " + ", ".join(sorted(key.replace(".", "__") for key in known)),
                object=live.name, program=name,
            )  # fmt: skip
        if not isinstance(value, int):
            raise UsageError(
                f"{key.replace('.', '__')} is a number, not {type(value).__name__}",
                object=live.name, program=name,
            )  # fmt: skip
    return fields


def _map_slot(live: Object, executor: Executor, target: Any) -> int:
    """The slot of one of our maps, or a new one for a further fd of somebody's Map."""
    from pybpf.kernel.map import Map

    found = _named(live, live.maps, target, "map") if isinstance(target, str) else target
    if not isinstance(found, Map):
        raise UsageError(f"a map is needed as the target, not {target!r}")
    executor.slots.append(-1)
    executor.fill_slot(len(executor.slots) - 1, found.dup())
    return len(executor.slots) - 1


def inherit(
    live: Object, links: bool, maps: Iterable[str], programs: Iterable[str]
) -> dict[str, dict[str, int]]:
    """See ``Object.inherit``."""
    made: dict[str, dict[str, int]] = {"links": {}, "maps": {}, "programs": {}}
    try:
        if links:
            for name, link in live.links.items():
                made["links"][name] = link.dup(inheritable=True)
        for name in maps:
            made["maps"][name] = _named(live, live.maps, name, "map").dup(inheritable=True)
        for name in programs:
            program = _named(live, live.programs, name, "program")
            made["programs"][name] = program.dup(inheritable=True)
    except BaseException:
        for part in made.values():
            for fd in part.values():
                posix.close(fd)
        raise
    return made


def detach_fds(live: Object) -> dict[str, dict[str, int]]:
    """See ``Object.detach_fds``."""
    live._alive()
    if live._vars is not None:
        live._vars.unmap()
    parts: dict[str, dict[str, Any]] = {
        "links": live.links, "maps": live.maps, "programs": live.programs
    }  # fmt: skip
    out = {
        part: {name: one.detach_fd() for name, one in things.items() if not one.closed}
        for part, things in parts.items()
    }
    # The links are closed for this object now, so close() leaves their fds alone.
    live.close()
    return out


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


def _named(live: Object, things: dict[str, Any], name: str, what: str) -> Any:
    if name not in things:
        raise UsageError(
            f"there is no {what} {name!r}; there are: {', '.join(things)}", object=live.name
        )
    return things[name]
