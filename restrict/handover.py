# SPDX-License-Identifier: BSD-2-Clause
"""Handing the policy to the next program of the same process, across exec.

What is inherited: the links, the .bss map, the ring buffer, the status link, and one sealed memfd
with a record of what they must be. The environment variable RESTRICT_HANDOVER holds that memfd's
number. The record is text, one item a line:

    restrict-handover 1
    place NAME OFFSET SIZE          a global in .bss
    map NAME FD ID SIZE             ".bss" (SIZE of its value) and "events"
    status FD ID PROGRAM-ID PIN     or "status none"
    link NAME FD ID PROGRAM-ID TAG  TAG: the kernel's tag of the program, hexadecimal
    end N                           number of links

The successor believes nothing of it: the kernel confirms each link's kind, id, program and the
program's tag, and that it uses no map but those that the guard in this very .bss protects; that
guard, which the programs obey, must name the same links; and with a Plan, the tags must be those
that this kernel gives the Plan's own programs. All, or it is refused. A refusal leaves every
inherited fd open, so that what is attached stays attached.
"""

from __future__ import annotations

import fcntl
import os

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.kernel.map import Map
from pybpf.kernel.program import Program
from pybpf.sys import abi as bpf_abi
from restrict.errors import HandoverError, RestrictError, system_error
from restrict.fsaccess import Policy
from restrict.guard import GLOBALS, Globals, check_place, start_ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import NoReturn, TypeVar

    from pybpf.kernel.object import KernelObject
    from pybpf.plan.ops import Plan

    _T = TypeVar("_T", bound=KernelObject)

__all__ = ["VARIABLE", "adopt", "check_successor", "execute", "hand_over", "take_back"]

VARIABLE = "RESTRICT_HANDOVER"
# Link type, attach type and program type of every link, and of the two that are no LSM programs.
_LSM = (bpf_abi.BPF_LINK_TYPE_TRACING, bpf_abi.BPF_LSM_MAC, bpf_abi.BPF_PROG_TYPE_LSM)
_KINDS = {
    "fsaccess_brk": (
        bpf_abi.BPF_LINK_TYPE_TRACING, bpf_abi.BPF_MODIFY_RETURN, bpf_abi.BPF_PROG_TYPE_TRACING,
    ),
    "fsaccess_sysctl": (
        bpf_abi.BPF_LINK_TYPE_CGROUP, bpf_abi.BPF_CGROUP_SYSCTL,
        bpf_abi.BPF_PROG_TYPE_CGROUP_SYSCTL,
    ),
}  # fmt: skip
_HEADER = "restrict-handover 1"
_SIZE_LIMIT = 1 << 16
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEALS = 0xF  # SEAL, SHRINK, GROW, WRITE (include/uapi/linux/fcntl.h)
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2
_MFD_NOEXEC_SEAL = 8  # 6.3; the record is never executed


def _record(policy: Policy) -> str:
    """The record of a policy whose program tags are asked of the kernel now."""
    lines = [_HEADER]
    for name, (offset, size) in policy.places.items():
        lines.append(f"place {name} {offset} {size}")
    lines.append(f"map .bss {policy.bss.fileno()} {policy.bss.id} {policy.bss_size}")
    lines.append(f"map events {policy.events.fileno()} {policy.events.id} 0")
    if policy.status is None:
        lines.append("status none")
    else:
        status = policy.status
        lines.append(
            f"status {status.fileno()} {status.id} {status.prog_id} {policy.status_pin or '-'}"
        )
    for name, link in policy.links.items():
        with Program.from_id(link.prog_id) as program:
            lines.append(f"link {name} {link.fileno()} {link.id} {program.id} {program.tag}")
    lines.append(f"end {len(policy.links)}")
    return "\n".join(lines) + "\n"


def _memfd(data: bytes) -> int:
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("restrict-handover", flags | _MFD_NOEXEC_SEAL)
    except OSError:  # before 6.3
        fd = os.memfd_create("restrict-handover", flags)
    try:
        os.write(fd, data)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def hand_over(policy: Policy) -> tuple[dict[str, str], int]:
    """Make everything inheritable: (environment for the next program, the record's fd).

    Call it right before exec; if exec fails, ``take_back`` makes the fds private again.
    """
    record = _memfd(_record(policy).encode())
    for handle in policy.handles():
        os.set_inheritable(handle.fileno(), True)
    os.set_inheritable(record, True)
    return {VARIABLE: str(record)}, record


def take_back(policy: Policy, record: int) -> None:
    """Undo ``hand_over`` after a failed exec."""
    for handle in policy.handles():
        os.set_inheritable(handle.fileno(), False)
    os.close(record)


def check_successor(program: str) -> None:
    """Refuse to hand descriptors to an init that is known to close them: enforcement would end, and
    nobody would say so. Raises RestrictError.

    systemd closes what no unit claims (257 and 262, both seen).
    """
    if os.path.basename(os.path.realpath(program)) == "systemd":
        raise RestrictError(
            "it closes the descriptors that keep the policy, which would end with that.",
            program=program,
            hint="Leave `keep` out of the configuration, or say keep = pins.",
        )


def execute(
    words: list[str], environment: Mapping[str, str] | None = None, *, hint: str | None = None
) -> NoReturn:
    """Become another program (in PATH, if its name has no slash); environment: what to add.

    Raises KernelError; hint: what to say then.
    """
    try:
        os.execvpe(words[0], words, {**os.environ, **(environment or {})})
    except OSError as e:
        raise system_error(
            "it cannot be executed", e, "execve", hint=hint, program=words[0]
        ) from None


# ── the successor ──


def _refuse(message: str, **where: object) -> NoReturn:
    raise HandoverError(
        f"{message}; what was inherited stays open and in force, and nothing was taken over.",
        hint=None,
        **where,
    )


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        _refuse(f"the record's {what} {text!r} is no number")
    return int(text)


def _descriptor(text: str, what: str) -> int:
    fd = _number(text, what)
    if fd >= 1 << 31:  # no C int
        _refuse(f"the record's {what} {text!r} is no file descriptor")
    return fd


def _read(fd: int) -> str:
    """The record; it must be a sealed memfd, so that nobody changes it while it is read."""
    try:
        if fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS != _SEALS:
            _refuse("the record is not sealed", fd=fd)
        data = os.pread(fd, _SIZE_LIMIT + 1, 0)
    except OSError as e:
        _refuse(f"the record cannot be read: {e.strerror}", fd=fd)
    if len(data) > _SIZE_LIMIT:
        _refuse(f"the record is longer than {_SIZE_LIMIT} bytes", fd=fd)
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        _refuse("the record is not text", fd=fd)


class _Record:
    """The parsed record; only its form is checked here."""

    def __init__(self, text: str) -> None:
        lines = text.split("\n")
        if lines[0] != _HEADER:
            _refuse(f"the record begins with {lines[0][:40]!r}, not {_HEADER!r}")
        if len(lines) < 3 or lines[-1] != "" or not lines[-2].startswith("end "):
            _refuse("the record is cut short")
        self.places: dict[str, tuple[int, int]] = {}
        self.maps: dict[str, tuple[int, int, int]] = {}
        self.links: dict[str, tuple[int, int, int, str]] = {}
        self.status: tuple[int, int, int, str] | None = None
        self.fds: set[int] = set()
        for line in lines[1:-2]:
            self._line(line)
        count = _number(lines[-2][4:], "number of links")
        if count != len(self.links) or not self.links:
            _refuse(f"the record names {len(self.links)} links where {count} were handed over")
        if set(self.maps) != {".bss", "events"}:
            _refuse("the record does not name the maps .bss and events")
        if set(self.places) != set(GLOBALS):
            _refuse("the record does not place every global")

    def _fd(self, text: str) -> int:
        fd = _descriptor(text, "file descriptor")
        if fd in self.fds:
            _refuse(f"the record names file descriptor {fd} twice")
        self.fds.add(fd)
        return fd

    def _line(self, line: str) -> None:
        words = line.split(" ")
        kind = words[0]
        if kind == "place" and len(words) == 4:
            offset, size = _number(words[2], "offset"), _number(words[3], "size")
            if words[1] in GLOBALS:
                check_place(words[1], offset, size, GLOBALS[words[1]])
                self.places[words[1]] = (offset, size)
                return
        elif kind == "map" and len(words) == 5 and words[1] not in self.maps:
            self.maps[words[1]] = (
                self._fd(words[2]), _number(words[3], "map id"), _number(words[4], "size"),
            )  # fmt: skip
            return
        elif kind == "status" and words[1:] == ["none"]:
            return
        elif kind == "status" and len(words) == 5 and self.status is None:
            self.status = (
                self._fd(words[1]), _number(words[2], "link id"),
                _number(words[3], "program id"), words[4],
            )  # fmt: skip
            return
        elif kind == "link" and len(words) == 6 and words[1] not in self.links:
            self.links[words[1]] = (
                self._fd(words[2]), _number(words[3], "link id"),
                _number(words[4], "program id"), words[5],
            )  # fmt: skip
            return
        _refuse(f"the record has the line {line[:60]!r}")


def _tags(plan: Plan) -> dict[str, str]:
    """The tags that this kernel gives the Plan's programs: they are loaded, read and let go.

    Tags depend on the kernel (offsets are relocated into the instructions), so they cannot
    stand in a file.
    """
    from pybpf.plan.run import run

    with run(plan) as obj:
        return {name: program.tag for name, program in obj.programs.items()}


def _open(kind: type[_T], fd: int, name: str) -> _T:
    """A second handle to look at; the inherited one stays untouched."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return kind.from_fd(copy, name=name)
    except BaseException:
        os.close(copy)
        raise


def _check_link(name: str, fd: int, ident: int, prog: int, tag: str, guarded: set[int]) -> set[int]:
    """Ask the kernel about one inherited link; the ids of the maps its program uses."""
    with _open(Link, fd, name) as link:
        info = link.info()
    link_type, attach_type, program_type = _KINDS.get(name, _LSM)
    if info["type"] != link_type:
        _refuse(f"it is a link of type {info['type']}, not {link_type}", link=name, fd=fd)
    if info.get("attach_type") != attach_type:
        _refuse(
            f"its attach type is {info.get('attach_type')}, not {attach_type}", link=name, fd=fd
        )
    if info["id"] != ident or info["prog_id"] != prog:
        _refuse(
            f"it is link {info['id']} of program {info['prog_id']}, not link {ident} of {prog}",
            link=name,
            fd=fd,
        )
    with Program.from_id(prog) as program:
        if program.type != program_type:
            _refuse(f"its program is of type {program.type}, not {program_type}", link=name, fd=fd)
        if program.tag != tag:
            _refuse(f"its program has the tag {program.tag}, not {tag}", link=name, fd=fd)
        maps = set(program.map_ids())
    if not maps or not maps <= guarded:
        _refuse(
            f"its program uses the maps {sorted(maps)}, the guard protects {sorted(guarded)}",
            link=name,
            fd=fd,
        )
    return maps


def _check_map(name: str, fd: int, ident: int, kind: int) -> None:
    with _open(Map, fd, name) as inherited:
        info = inherited.info()
    if info["type"] != kind:
        _refuse(f"it is a map of type {info['type']}, not {kind}", map=name, fd=fd)
    if info["id"] != ident:
        _refuse(f"it is map {info['id']}, not {ident}", map=name, fd=fd)


def _check_guard(policy: Policy, record: _Record) -> None:
    """The guard that the kernel's programs obey must describe exactly what was inherited."""
    expected = {link[1] for link in record.links.values()}
    if record.status is not None:
        expected.add(record.status[1])
    with policy.globals() as values:
        if not values.get("armed"):
            _refuse("the inherited policy is not armed")
        owner, ticks = values.get("owner_tgid"), values.get("owner_start_ticks")
        maps, programs, links = (
            set(values.ids(f"guard_{kind}_ids")) for kind in ("map", "program", "link")
        )
    if owner != os.getpid() or (owner != 1 and ticks != start_ticks()):
        _refuse(f"the policy's owner is process {owner}, not this one ({os.getpid()})")
    if links != expected:
        _refuse(f"the guard protects the links {sorted(links)}, inherited were {sorted(expected)}")
    if not {link[2] for link in record.links.values()} <= programs:
        _refuse("the guard does not protect all programs of the inherited links")
    if not {entry[1] for entry in record.maps.values()} <= maps:
        _refuse("the guard does not protect the inherited maps")


def _validate(record: _Record, plan: Plan | None) -> None:
    bss_fd, bss_id, bss_size = record.maps[".bss"]
    _check_map(".bss", bss_fd, bss_id, bpf_abi.BPF_MAP_TYPE_ARRAY)
    events_fd, events_id, _ = record.maps["events"]
    _check_map("events", events_fd, events_id, bpf_abi.BPF_MAP_TYPE_RINGBUF)
    with _open(Map, bss_fd, ".bss") as bss:
        if bss.value_size != bss_size:
            _refuse(f"its value has {bss.value_size} bytes, not {bss_size}", map=".bss")
    idents = [link[1] for link in record.links.values()]
    if len(set(idents)) != len(idents):
        _refuse("a link was handed over twice in place of another")
    with Globals(bss_fd, bss_size, record.places) as values:
        guarded = set(values.ids("guard_map_ids"))
    used: set[int] = set()
    for name, (fd, ident, prog, tag) in record.links.items():
        used |= _check_link(name, fd, ident, prog, tag, guarded)
    if bss_id not in used:
        _refuse(f"no inherited program uses the map .bss ({bss_id})")
    if record.status is not None:
        fd, ident, prog, _pin = record.status
        with _open(Link, fd, "status") as link:
            info = link.info()
        if (info["type"], info["id"], info["prog_id"]) != (
            bpf_abi.BPF_LINK_TYPE_ITER, ident, prog,
        ):  # fmt: skip
            _refuse("it is not the status iterator that was handed over", link="status", fd=fd)
    if plan is not None:
        tags = _tags(plan)
        for name, (fd, _ident, _prog, tag) in record.links.items():
            if tags.get(name) != tag:
                _refuse(
                    f"its program's tag is {tag}, the plan's is {tags.get(name, 'not there')}",
                    link=name,
                    fd=fd,
                )


def adopt(
    environment: MutableMapping[str, str] | None = None, *, plan: Plan | None = None
) -> Policy | None:
    """Take over an inherited policy; None if none was handed over.

    plan: the policy's Plan, to hold the programs' tags against what this kernel makes of it
    (recommended: without it, only the predecessor's record and the kernel are compared).
    On success the fds are close-on-exec again and the variable is gone from ``environment``
    (default: os.environ). Raises HandoverError when anything is missing or foreign; the
    inherited fds then stay as they are.
    """
    env: MutableMapping[str, str] = os.environ if environment is None else environment
    text = env.get(VARIABLE)
    if text is None:
        return None
    fd = _descriptor(text, "number in " + VARIABLE)
    try:
        record = _Record(_read(fd))
        _validate(record, plan)
        bss_fd, _, bss_size = record.maps[".bss"]
        policy = Policy(
            {name: Link(entry[0], name) for name, entry in record.links.items()},
            Map(bss_fd, ".bss"),
            bss_size,
            Map(record.maps["events"][0], "events"),
            record.places,
            Link(record.status[0], "status") if record.status is not None else None,
            None if record.status is None or record.status[3] == "-" else record.status[3],
        )
    except HandoverError:
        raise
    except (PybpfError, OSError) as e:
        _refuse(f"it is not what was handed over: {e}")
    try:
        _check_guard(policy, record)
    except BaseException:
        for handle in policy.handles():
            handle.detach_fd()  # leave it open: enforcement must not end here
        raise
    for handle in policy.handles():
        os.set_inheritable(handle.fileno(), False)
    os.close(fd)
    del env[VARIABLE]
    return policy
