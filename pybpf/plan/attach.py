# SPDX-License-Identifier: BSD-2-Clause
"""Attaching that needs more than one system call; imported when a Plan asks for it.

``how`` of a LinkCreate, what its ``target`` is, and how it is undone (a link: by closing it):

    cgroup          path of a cgroup2 directory, or its fd → BPF_LINK_CREATE (5.7)
    netns           path of a network namespace file, or its fd → BPF_LINK_CREATE (5.8)
    interface       name of a network interface → BPF_LINK_CREATE on its index (XDP 5.9, tcx 6.6,
                    netkit 6.7); tc programs take the attach type BPF_TCX_INGRESS or _EGRESS
    sockmap         fd slot of a SOCKMAP or SOCKHASH → BPF_LINK_CREATE (6.10), before that
                    BPF_PROG_ATTACH
    netfilter       "ipv4/local_in": family (ipv4, ipv6) and hook (prerouting, local_in, forward,
                    local_out, postrouting) → BPF_LINK_CREATE (6.4); priority in extra
                    netfilter.priority
    iter            None, or the fd slot of the map to iterate over (5.8)
    struct_ops      None; ``prog`` is the map's slot (link 6.4: the map needs BPF_F_LINK)
    tracepoint      "category/name" → perf event and link (5.15; before: ioctl)
    ksyscall, kretsyscall    name of a system call: kprobe on this machine's entry of it
    kprobe, kretprobe    "function" or "function+offset" → the same (perf kprobe: 4.17)
    uprobe, uretprobe    "path:offset", "path:function" or "path:function+offset" → the same; a
                    function is looked up with pyelftools; extra pid: of one process only
    kprobe_multi, kretprobe_multi, kprobe_session    a function or a pattern with * and ?
                    → one link (5.18, sessions 6.10)
    tracing_multi   the same, for functions that have a prototype in vmlinux BTF (7.1)
    uprobe_multi, uretprobe_multi, uprobe_session    as uprobe, or a pattern → one link (6.6,
                    sessions 6.13)
    perf_event      the fd of a perf event
    prog_attach     path (cgroup2 directory, /dev/lircN) or fd → BPF_PROG_ATTACH: no link; undone
                    and detached with BPF_PROG_DETACH; stays if the process just ends

``extra`` may give perf_event.bpf_cookie and other fields of BPF_LINK_CREATE; the multi probes
take ``cookie``, one value for all places.

Section families, how they are attached (``how_of``), and what shows it. "T" is
tests/kernel/test_attach*.py, which run on the host as far as it can and in both guests, where
nothing is skipped but what tests/vm/test_attach.py names (fsession and uprobe.session on 6.12); L
is tests/kernel/test_links.py, N tests/kernel/test_network.py.

    kprobe kretprobe ksyscall kretsyscall        as named; by attach()           T (guests), L
    kprobe.multi kretprobe.multi kprobe.session  as named; by attach()           T (guests)
    uprobe uretprobe uprobe.multi uretprobe.multi uprobe.session   as named; by attach() with a
                                                 target in the section           T
    usdt                                         not: notes in ELF are not read
    tp tracepoint                                tracepoint; by attach()         T (guests), L
    raw_tp raw_tracepoint (.w)                   raw_tracepoint; by attach()     T, L
    tp_btf                                       link; by attach()               T, L
    fentry fexit fmod_ret fsession lsm           link; by attach(); of a loaded program too,
                                                 as freplace                     T (guests)
    fentry.multi fexit.multi fsession.multi      tracing_multi; by attach() with a target in the
                                                 section; functions of vmlinux  T (7.3 guest)
    lsm_cgroup                                   cgroup                          T (guests)
    iter                                         iter; by attach() unless of one map's elements T
    freplace                                     link; by attach(). The loaded program is given to
                                                 load(…, targets=…)              T (guests)
    struct_ops                                   struct_ops; by attach()         T (guests)
    perf_event                                   perf_event                      T
    xdp xdp.frags                                interface                       T
    xdp/devmap xdp/cpumap                        not attached: put into a map (value's
                                                 bpf_prog.fd)                    N
    tc tcx netkit                                interface                       T
    classifier action                            interface for the first; the classic way: ``tc
                                                 filter … bpf object-pinned``    N
    cgroup_skb cgroup/… sockops                  cgroup, or prog_attach          T, L
    sk_lookup flow_dissector                     netns                           T
    sk_msg sk_skb                                sockmap                         T
    netfilter                                    netfilter                       T
    socket sk_reuseport                          Program.attach_socket           T
    lirc_mode2                                   prog_attach on /dev/lircN       not shown: neither
                                                 machine has such a device; it loads where
                                                 the kernel has CONFIG_BPF_LIRC_MODE2
    lwt_in lwt_out lwt_xmit lwt_seg6local        not: attributes of a route (rtnetlink): ``ip
                                                 route … encap bpf in pinned …`` N
    syscall                                      not attached: Program.test_run
"""

from __future__ import annotations

import posix
import struct

from pybpf.errors import KernelError, PlanError
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pybpf.plan.ops import LinkCreate
    from pybpf.plan.run import Executor

__all__ = ["COOKIES", "create", "how_of"]

_CGROUP = frozenset(
    (
        abi.BPF_PROG_TYPE_CGROUP_SKB, abi.BPF_PROG_TYPE_CGROUP_SOCK,
        abi.BPF_PROG_TYPE_CGROUP_DEVICE, abi.BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        abi.BPF_PROG_TYPE_CGROUP_SYSCTL, abi.BPF_PROG_TYPE_CGROUP_SOCKOPT,
        abi.BPF_PROG_TYPE_SOCK_OPS,
    )
)  # fmt: skip
_BY_TYPE = {
    abi.BPF_PROG_TYPE_XDP: "interface",
    abi.BPF_PROG_TYPE_SCHED_CLS: "interface",
    abi.BPF_PROG_TYPE_SK_LOOKUP: "netns",
    abi.BPF_PROG_TYPE_FLOW_DISSECTOR: "netns",
    abi.BPF_PROG_TYPE_SK_MSG: "sockmap",
    abi.BPF_PROG_TYPE_SK_SKB: "sockmap",
    abi.BPF_PROG_TYPE_NETFILTER: "netfilter",
    abi.BPF_PROG_TYPE_LIRC_MODE2: "prog_attach",
    abi.BPF_PROG_TYPE_PERF_EVENT: "perf_event",
    abi.BPF_PROG_TYPE_TRACEPOINT: "tracepoint",
    abi.BPF_PROG_TYPE_RAW_TRACEPOINT: "raw_tracepoint",
    abi.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE: "raw_tracepoint",
    abi.BPF_PROG_TYPE_EXT: "link",
}
# Attach types of tracing programs whose one target was given when they were loaded.
_TRACING = frozenset(
    (
        abi.BPF_TRACE_RAW_TP, abi.BPF_TRACE_FENTRY, abi.BPF_TRACE_FEXIT, abi.BPF_MODIFY_RETURN,
        abi.BPF_TRACE_FSESSION, abi.BPF_LSM_MAC,
    )
)  # fmt: skip
_TRACING_MULTI = frozenset(
    (abi.BPF_TRACE_FENTRY_MULTI, abi.BPF_TRACE_FEXIT_MULTI, abi.BPF_TRACE_FSESSION_MULTI)
)
# First word of a kprobe program's section → how.
_PROBES = {
    "kprobe": "kprobe", "kretprobe": "kretprobe",
    "ksyscall": "ksyscall", "kretsyscall": "kretsyscall",
    "uprobe": "uprobe", "uretprobe": "uretprobe",
    "kprobe.multi": "kprobe_multi", "kretprobe.multi": "kretprobe_multi",
    "kprobe.session": "kprobe_session", "uprobe.multi": "uprobe_multi",
    "uretprobe.multi": "uretprobe_multi", "uprobe.session": "uprobe_session",
}  # fmt: skip
# How → the field of ``extra`` that carries a cookie.
COOKIES = {
    "link": "tracing.cookie",
    "raw_tracepoint": "raw_tracepoint.cookie",
    **dict.fromkeys(
        ("tracepoint", "kprobe", "kretprobe", "ksyscall", "kretsyscall", "uprobe", "uretprobe",
         "perf_event"), "perf_event.bpf_cookie",
    ),
    **dict.fromkeys(
        ("kprobe_multi", "kretprobe_multi", "kprobe_session", "uprobe_multi", "uretprobe_multi",
         "uprobe_session", "tracing_multi"), "cookie",
    ),
}  # fmt: skip
_ENODEV = 19
_FAMILIES = {"ipv4": 2, "ipv6": 10}  # NFPROTO_IPV4, NFPROTO_IPV6 (linux/netfilter.h)
_HOOKS = {"prerouting": 0, "local_in": 1, "forward": 2, "local_out": 3, "postrouting": 4}


def how_of(prog_type: int, attach_type: int, section: str) -> str | None:
    """How a program of this type, expected attach type and section is attached; None: it is not,
    or not by a Plan (the table above says what then)."""
    if prog_type in _CGROUP or attach_type == abi.BPF_LSM_CGROUP:
        return "cgroup"
    if prog_type in (abi.BPF_PROG_TYPE_TRACING, abi.BPF_PROG_TYPE_LSM):
        if attach_type == abi.BPF_TRACE_ITER:
            return "iter"
        if attach_type in _TRACING_MULTI:
            return "tracing_multi"
        return "link" if attach_type in _TRACING else None
    if prog_type == abi.BPF_PROG_TYPE_KPROBE:
        return _PROBES.get(section.lstrip("?").split("/", 1)[0].removesuffix(".s"))
    if attach_type in (abi.BPF_XDP_DEVMAP, abi.BPF_XDP_CPUMAP):
        return None  # these run from a map's entry
    return _BY_TYPE.get(prog_type)


def create(executor: Executor, op: LinkCreate, program: int) -> None:
    """Do what ``op`` says; the link's fd goes to its slot, or the journal gets the attachment."""
    how = _HOW.get(op.how)
    if how is None:
        from pybpf.plan.attach_probe import HOW

        how = HOW.get(op.how)
        if how is None:
            known = ", ".join(("link", "raw_tracepoint", *_HOW, *HOW))
            raise PlanError(f"{op.how!r} is no way to attach; there are: {known}")
    how(executor, op, program)


def _open(path: object, flags: int = posix.O_RDONLY) -> int:
    """An fd of the caller's own for a path or an fd."""
    if isinstance(path, int):
        return posix.dup(path)
    if not isinstance(path, str):
        raise PlanError(f"a path or an fd is needed as the target, not {path!r}")
    try:
        return posix.open(path, flags | posix.O_CLOEXEC)
    except OSError as error:
        raise fail("open", error.errno or 2, path=path) from None


def _link(executor: Executor, op: LinkCreate, program: int, target: int, **more: int) -> None:
    fields = {**dict(op.extra), **more}
    try:
        fd = bpf.link_create(program, target, op.attach_type, flags=op.flags, **fields)
    except KernelError as error:
        raise error.at(target=op.target)  # noqa: B904
    executor.fill_slot(op.dst, fd)


def _path(executor: Executor, op: LinkCreate, program: int) -> None:
    target = _open(op.target)
    try:
        _link(executor, op, program, target)
    except KernelError as error:
        if op.how == "cgroup" and error.errno == bpf.EBADF and isinstance(op.target, str):
            from pybpf.kernel.object import filesystem

            if (kind := filesystem(op.target)) not in ("", "cgroup2"):
                error.hint = f"It is on {kind}; a directory of cgroup2 is needed."
        raise
    finally:
        posix.close(target)


def _interface(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, str) or not op.target or "/" in op.target:
        raise PlanError(f"the name of a network interface is needed, not {op.target!r}")
    # Not /sys/class/net, which shows the network namespace in which sysfs was mounted.
    from _socket import if_nametoindex

    try:
        index = if_nametoindex(op.target)
    except OSError as error:
        raise fail(
            "if_nametoindex", error.errno or _ENODEV, interface=op.target,
            hint="There is no such interface in this network namespace.",
        ) from None  # fmt: skip
    if not op.attach_type:
        raise PlanError(
            "a tc program is attached to one direction: give the attach type, BPF_TCX_INGRESS or "
            "BPF_TCX_EGRESS"
        )
    _link(executor, op, program, index)


def _sockmap(executor: Executor, op: LinkCreate, program: int) -> None:
    if not isinstance(op.target, int):
        raise PlanError("the target of a socket map's program is the map's fd slot")
    target = executor.fd(op.target, "map")
    try:
        fd = bpf.link_create(program, target, op.attach_type, flags=op.flags)
    except KernelError as error:
        # Socket maps take links since 699c23f02c65 (in 6.10), programs since 4.14.
        if error.errno != bpf.EINVAL:
            raise
        _attach(executor, op, program, posix.dup(target))
        return
    executor.fill_slot(op.dst, fd)


def _netfilter(executor: Executor, op: LinkCreate, program: int) -> None:
    family, _, hook = str(op.target).partition("/")
    if family not in _FAMILIES or hook not in _HOOKS:
        raise PlanError(
            f"a netfilter hook is FAMILY/HOOK with {', '.join(_FAMILIES)} and "
            f"{', '.join(_HOOKS)}, not {op.target!r}"
        )
    more = {"netfilter.pf": _FAMILIES[family], "netfilter.hooknum": _HOOKS[hook]}
    _link(executor, op, program, 0, **more)


def _iter(executor: Executor, op: LinkCreate, program: int) -> None:
    if op.target is None:
        _link(executor, op, program, 0)
        return
    if not isinstance(op.target, int):
        raise PlanError("the target of an iterator is a map's fd slot")
    # union bpf_iter_link_info { struct { __u32 map_fd; } map; … }
    info = Pointer(struct.pack("=I", executor.fd(op.target, "map")))
    _link(executor, op, program, 0, iter_info=info.address, iter_info_len=4)


def _struct_ops(executor: Executor, op: LinkCreate, map_fd: int) -> None:
    fd = bpf.link_create(map_fd, 0, abi.BPF_STRUCT_OPS, flags=op.flags)
    executor.fill_slot(op.dst, fd)


def _prog_attach(executor: Executor, op: LinkCreate, program: int) -> None:
    _attach(executor, op, program, _open(op.target))


def _attach(executor: Executor, op: LinkCreate, program: int, target: int) -> None:
    """BPF_PROG_ATTACH; takes ``target`` over."""
    try:
        bpf.prog_attach(program, target, op.attach_type, op.flags)
    except BaseException:
        posix.close(target)
        raise
    executor.journal.append(("attached", program, target, op.attach_type))


_HOW: dict[str, Callable[[Executor, LinkCreate, int], None]] = {
    "cgroup": _path,
    "netns": _path,
    "interface": _interface,
    "sockmap": _sockmap,
    "netfilter": _netfilter,
    "iter": _iter,
    "struct_ops": _struct_ops,
    "prog_attach": _prog_attach,
}
