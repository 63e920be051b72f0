# SPDX-License-Identifier: BSD-2-Clause
"""Which kernel an object needs at least, and what for.

From the object alone: program, attach and map types, helpers, instructions and features that its
programs use. First releases are facts of the kernel's history (the merging commits; the lists of
them in bcc's docs/kernel-versions.md and the eBPF documentation's feature-versions.yaml were
compared, and the commit counts where they disagree). Helpers were numbered as they were merged,
so that a release is a range of numbers, and since 6.2 none was added.

A later kernel may be needed for what cannot be told from numbers: flags of helpers, fields of
contexts, the verifier's skill. Kfuncs have no fixed first release: ``compile`` tells whether a
kernel has them.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

from pybpf.asm import decode
from pybpf.errors import FormatError, RelocationError
from pybpf.reloc.link import Linker
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import NamedTuple

    from pybpf.asm import Instruction
    from pybpf.spec import MapSpec, ObjectSpec, ProgramSpec
else:
    from pybpf.record import NamedTuple

__all__ = ["Need", "Needs", "Used", "helper_since", "least", "map_needs"]

# The first helper of each release that brought any.
_FIRST_HELPER = (
    ("map_lookup_elem", "3.19"), ("probe_read", "4.1"), ("tail_call", "4.2"),
    ("get_cgroup_classid", "4.3"), ("redirect", "4.4"), ("skb_load_bytes", "4.5"),
    ("get_stackid", "4.6"), ("skb_change_proto", "4.8"), ("current_task_under_cgroup", "4.9"),
    ("get_numa_node_id", "4.10"), ("probe_read_str", "4.11"), ("get_socket_cookie", "4.12"),
    ("set_hash", "4.13"), ("redirect_map", "4.14"), ("xdp_adjust_meta", "4.15"),
    ("override_return", "4.16"), ("msg_redirect_map", "4.17"), ("xdp_adjust_tail", "4.18"),
    ("get_local_storage", "4.19"), ("sk_lookup_tcp", "4.20"), ("msg_pop_data", "5.0"),
    ("spin_lock", "5.1"), ("skc_lookup_tcp", "5.2"), ("send_signal", "5.3"),
    ("tcp_gen_syncookie", "5.4"), ("skb_output", "5.5"), ("tcp_send_ack", "5.6"),
    ("read_branch_records", "5.7"), ("ktime_get_boot_ns", "5.8"), ("skc_to_tcp6_sock", "5.9"),
    ("load_hdr_opt", "5.10"), ("task_storage_get", "5.11"), ("check_mtu", "5.12"),
    ("for_each_map_elem", "5.13"), ("sys_bpf", "5.14"), ("timer_init", "5.15"),
    ("get_branch_snapshot", "5.16"), ("find_vma", "5.17"), ("get_retval", "5.18"),
    ("kptr_xchg", "5.19"), ("tcp_raw_gen_syncookie_ipv4", "6.0"), ("ktime_get_tai_ns", "6.1"),
    ("cgrp_storage_get", "6.2"),
)  # fmt: skip

_ATTACH_SINCE = {
    abi.BPF_MODIFY_RETURN: "5.7",
    abi.BPF_TRACE_ITER: "5.8",
    abi.BPF_XDP_DEVMAP: "5.8",
    abi.BPF_CGROUP_INET4_GETPEERNAME: "5.8",
    abi.BPF_CGROUP_INET6_GETPEERNAME: "5.8",
    abi.BPF_CGROUP_INET4_GETSOCKNAME: "5.8",
    abi.BPF_CGROUP_INET6_GETSOCKNAME: "5.8",
    abi.BPF_CGROUP_UDP4_SENDMSG: "4.18",
    abi.BPF_CGROUP_UDP6_SENDMSG: "4.18",
    abi.BPF_CGROUP_UDP4_RECVMSG: "5.2",
    abi.BPF_CGROUP_UDP6_RECVMSG: "5.2",
    abi.BPF_CGROUP_INET4_POST_BIND: "4.17",
    abi.BPF_CGROUP_INET6_POST_BIND: "4.17",
    abi.BPF_CGROUP_INET_SOCK_RELEASE: "5.9",
    abi.BPF_XDP_CPUMAP: "5.9",
    abi.BPF_SK_SKB_VERDICT: "5.13",
    abi.BPF_SK_REUSEPORT_SELECT_OR_MIGRATE: "5.14",
    abi.BPF_TRACE_KPROBE_MULTI: "5.18",
    abi.BPF_LSM_CGROUP: "6.0",
    abi.BPF_TCX_INGRESS: "6.6",
    abi.BPF_TCX_EGRESS: "6.6",
    abi.BPF_TRACE_UPROBE_MULTI: "6.6",
    abi.BPF_CGROUP_UNIX_CONNECT: "6.7",
    abi.BPF_CGROUP_UNIX_SENDMSG: "6.7",
    abi.BPF_CGROUP_UNIX_RECVMSG: "6.7",
    abi.BPF_CGROUP_UNIX_GETPEERNAME: "6.7",
    abi.BPF_CGROUP_UNIX_GETSOCKNAME: "6.7",
    abi.BPF_NETKIT_PRIMARY: "6.7",
    abi.BPF_NETKIT_PEER: "6.7",
    abi.BPF_TRACE_KPROBE_SESSION: "6.10",
    abi.BPF_TRACE_UPROBE_SESSION: "6.13",
    abi.BPF_TRACE_FSESSION: "7.0",
    abi.BPF_TRACE_FENTRY_MULTI: "7.1",
    abi.BPF_TRACE_FEXIT_MULTI: "7.1",
    abi.BPF_TRACE_FSESSION_MULTI: "7.1",
}


class Need(NamedTuple):
    """Something that a kernel has since ``version`` ("5.8"; None: not known)."""

    version: str | None
    what: str


class Used(NamedTuple):
    """What a program calls: helper numbers, kfunc names (True: weak), by first use."""

    helpers: tuple[int, ...]
    kfuncs: tuple[tuple[str, bool], ...]


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def least(needs: Iterable[Need]) -> str | None:
    """The latest of the versions, None if none is known."""
    known = [n.version for n in needs if n.version is not None]
    return max(known, key=_key, default=None)


def helper_since(number: int) -> str | None:
    """The release that brought a helper, None for a number that no release has."""
    from pybpf.sys.abi_helpers import HELPER_NAMES

    if not 0 < number < len(HELPER_NAMES):
        return None
    starts = [HELPER_NAMES.index(name) for name, _ in _FIRST_HELPER]
    return _FIRST_HELPER[bisect_right(starts, number) - 1][1]


_GLOBALS = Need("5.2", "global variables")
_CALLBACKS = Need("5.13", "callbacks")

class _Found:
    """What functions call and need; each a dict for its order."""

    __slots__ = ("helpers", "kfuncs", "needs")

    def __init__(self) -> None:
        self.helpers: dict[int, None] = {}
        self.kfuncs: dict[str, bool] = {}
        self.needs: dict[Need, None] = {}

    def update(self, other: _Found) -> None:
        """Add what others call and need."""
        self.helpers.update(other.helpers)
        self.kfuncs.update(other.kfuncs)
        self.needs.update(other.needs)

    def add(self, spec: ObjectSpec, number: int) -> None:
        """Add what a function calls and needs."""
        function = spec.functions[number]
        try:
            helpers, wanted = _told(function.insns, spec.byteorder)
        except FormatError as exc:
            where = {"section": function.section, "function": function.name}
            raise exc.at(object=spec.path or spec.name, **where) from None
        # Old compilers leave -1 and source register 0 in a call that a relocation completes.
        self.helpers.update(dict.fromkeys(h for h in helpers if h > 0))
        for ref in function.refs:
            if ref.kind == "data":
                self.needs[_GLOBALS] = None
            elif ref.kind == "func":
                self.needs[_CALLBACKS] = None
            elif ref.kind == "extern":
                extern = spec.externs.get(ref.name)
                if extern is not None and extern.kind == "kfunc":
                    self.kfuncs.setdefault(extern.name, extern.weak)
                elif extern is not None and extern.kind == "kconfig":
                    self.needs[_GLOBALS] = None
        self.needs.update(dict.fromkeys(wanted))


@lru_cache(maxsize=1 << 14)  # a subprogram is asked for by every program that reaches it
def _told(insns: bytes, byteorder: str) -> tuple[tuple[int, ...], tuple[Need, ...]]:
    """Helpers called by a function, and what its single instructions need."""
    found = decode(insns, byteorder)
    helpers = dict.fromkeys(i.helper for i in found if i.helper is not None)
    return tuple(helpers), tuple(dict.fromkeys(n for i in found for n in _instruction_needs(i)))


def map_needs(found: MapSpec) -> list[Need]:
    """What a map needs."""
    from pybpf.kernel.features import MAP_TYPE_SINCE
    from pybpf.sys.abi_names import MAP_TYPE_NAMES

    name = MAP_TYPE_NAMES.get(found.type, str(found.type))
    out = [Need(MAP_TYPE_SINCE.get(found.type), f"map type {name}")]
    flags = (
        (abi.BPF_F_NUMA_NODE, "4.14", "BPF_F_NUMA_NODE"),
        (abi.BPF_F_RDONLY_PROG | abi.BPF_F_WRONLY_PROG, "5.2", "maps read-only for programs"),
        (abi.BPF_F_MMAPABLE, "5.5", "mapping a map into memory"),
        (abi.BPF_F_INNER_MAP, "5.10", "inner maps of different sizes"),
        (abi.BPF_F_LINK, "6.4", "struct_ops by link"),
    )
    out += [Need(since, what) for bits, since, what in flags if found.flags & bits]
    if found.exclusive is not None:
        out.append(Need("6.18", "maps of one program alone"))
    if found.frozen:
        out.append(Need("5.2", "freezing a map"))
    return out


class Needs:
    """What the programs of one object call and need. What they share behind their entry
    functions is looked at once."""

    def __init__(self, spec: ObjectSpec) -> None:
        self.spec = spec
        self._linker = Linker(spec)

    def used_by(self, program: ProgramSpec) -> Used:
        """Helpers and kfuncs that the program and its subprograms call. Raises FormatError for
        instructions that are none."""
        found, _ = self._found(program)
        return Used(tuple(found.helpers), tuple(found.kfuncs.items()))

    def program(self, program: ProgramSpec) -> list[Need]:
        """What a program needs, its helpers included, its maps not. Raises as ``used_by``."""
        from pybpf.kernel.features import PROGRAM_TYPE_SINCE
        from pybpf.sys.abi_helpers import HELPER_NAMES
        from pybpf.sys.abi_names import ATTACH_TYPE_NAMES, PROG_TYPE_NAMES

        name = PROG_TYPE_NAMES.get(program.type, str(program.type))
        out = {Need(PROGRAM_TYPE_SINCE.get(program.type), f"program type {name}"): None}

        def add(version: str | None, what: str) -> None:
            out.setdefault(Need(version, what))

        since = _ATTACH_SINCE.get(program.expected_attach_type)
        if since is not None:
            add(since, f"attach type {ATTACH_TYPE_NAMES.get(program.expected_attach_type)}")
        if program.flags & abi.BPF_F_SLEEPABLE and program.type != abi.BPF_PROG_TYPE_SYSCALL:
            add("5.10", "sleepable programs")
        if program.flags & abi.BPF_F_XDP_HAS_FRAGS:
            add("5.18", "XDP on packets in fragments")
        found, subprograms = self._found(program)
        for number in found.helpers:
            known = 0 < number < len(HELPER_NAMES)
            label = f"bpf_{HELPER_NAMES[number]}" if known else f"number {number}"
            add(helper_since(number), f"helper {label}")
        for kfunc, weak in found.kfuncs.items():
            if not weak:
                add("5.13", "calls of kernel functions")
                add(None, f"kernel function {kfunc}")
        if subprograms:
            add("4.16", "subprograms")
        if program.exception_callback >= 0:
            add("6.7", "exceptions")
        out.update(found.needs)
        return list(out)

    def _found(self, program: ProgramSpec) -> tuple[_Found, bool]:
        """(what the program calls and needs, whether it has subprograms)."""
        out = _Found()
        out.add(self.spec, program.function)
        try:
            tail = self._linker.behind(program)
        except RelocationError:
            return out, False
        if tail.used is None:
            used = _Found()
            for number in tail.starts:
                used.add(self.spec, number)
            tail.used = used
        out.update(tail.used)
        return out, bool(tail.starts)


def _instruction_needs(ins: Instruction) -> Iterator[Need]:
    """What single instructions need (Documentation/bpf/standardization/instruction-set.rst)."""
    code, kind = ins.opcode, ins.opcode & 7
    if kind == 6 and code != 0x06:
        yield Need("5.1", "32-bit jumps")  # 092ed0968bb6
    if code == 0x06:
        yield Need("6.6", "long jumps")  # 4cd58e9af8b9
    elif code == 0x0D:
        yield Need("6.19", "indirect jumps")  # 493d9e0d6083
    elif code == 0xE5:
        yield Need("6.9", "may_goto")  # 011832b97b31
    elif code & 0xE7 == 0xC3:  # BPF_STX | BPF_ATOMIC of any size
        if ins.imm in (0x100, 0x110):
            yield Need("6.15", "load-acquire and store-release")  # 880442305a39
        elif ins.imm != 0:  # BPF_ADD without BPF_FETCH is as old as eBPF
            yield Need("5.12", "atomic instructions beyond addition")  # 5ca419f2864a
    elif kind == 1 and code & 0xE0 == 0x80:
        yield Need("6.6", "sign-extending loads")  # 1f9a1ea821ff
    elif kind in (4, 7) and code & 0xF0 == 0xB0 and ins.off in (8, 16, 32):
        yield Need("6.6", "sign-extending moves")  # 8100928c8814
    elif kind in (4, 7) and code & 0xF0 in (0x30, 0x90) and ins.off == 1:
        yield Need("6.6", "signed division")  # ec0e2da95f72
    elif code == 0xD7:
        yield Need("6.6", "byte swaps without condition")  # 0845c3db7bf5
    elif code == 0xBF and ins.off == 1:
        yield Need("6.9", "arena address casts")  # 142fd4d2dcf5
