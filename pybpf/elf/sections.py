# SPDX-License-Identifier: BSD-2-Clause
"""SEC() names: which program type, attach type and flags a section's name stands for.

The vocabulary is that of the kernel tree's document "Program Types and ELF Sections" and of
libbpf 1.8. Order matters: the first definition that matches wins.
"""

from __future__ import annotations

from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["SECTIONS", "SectionDef", "find", "nearest", "split"]

SLEEPABLE = abi.BPF_F_SLEEPABLE
FRAGS = abi.BPF_F_XDP_HAS_FRAGS


class SectionDef(NamedTuple):
    """One SEC() definition.

    pattern: "name" matches exactly, "name+" also "name/target".
    btf:     how the attach target is named in kernel BTF: (prefix, kind name), or None.
    multi:   many targets, chosen when attaching rather than when loading.
    optional_attach_type: kernels before 4.17 know no expected attach type: it may be left out.
    """

    pattern: str
    type: int
    attach_type: int = 0
    flags: int = 0
    btf: tuple[str, str] | None = None
    multi: bool = False
    optional_attach_type: bool = False

    @property
    def prefix(self) -> str:
        """The name without the marker for targets."""
        return self.pattern.rstrip("+")

    @property
    def takes_target(self) -> bool:
        """Whether "name/target" is understood."""
        return self.pattern.endswith("+")


_FUNC = ("", "FUNC")


def _table() -> list[SectionDef]:
    a = abi
    out: list[SectionDef] = []

    def add(pattern: str, prog: int, attach: int = 0, flags: int = 0, **more: object) -> None:
        out.append(SectionDef(pattern, prog, attach, flags, **more))  # type: ignore[arg-type]

    def both(name: str, prog: int, attach: int, **more: object) -> None:
        """``name+`` and its sleepable twin ``name.s+``."""
        add(f"{name}+", prog, attach, 0, **more)
        add(f"{name}.s+", prog, attach, SLEEPABLE, **more)

    add("socket", a.BPF_PROG_TYPE_SOCKET_FILTER)
    reuseport = a.BPF_PROG_TYPE_SK_REUSEPORT
    add("sk_reuseport/migrate", reuseport, a.BPF_SK_REUSEPORT_SELECT_OR_MIGRATE)
    add("sk_reuseport", reuseport, a.BPF_SK_REUSEPORT_SELECT)

    kprobe = a.BPF_PROG_TYPE_KPROBE
    for name in ("kprobe+", "kretprobe+", "ksyscall+", "kretsyscall+"):
        add(name, kprobe)
    for name in ("uprobe", "uretprobe", "usdt"):
        both(name, kprobe, 0)
    for name in ("kprobe.multi+", "kretprobe.multi+"):
        add(name, kprobe, a.BPF_TRACE_KPROBE_MULTI, multi=True)
    add("kprobe.session+", kprobe, a.BPF_TRACE_KPROBE_SESSION, multi=True)
    for name in ("uprobe.multi", "uretprobe.multi"):
        both(name, kprobe, a.BPF_TRACE_UPROBE_MULTI, multi=True)
    both("uprobe.session", kprobe, a.BPF_TRACE_UPROBE_SESSION, multi=True)

    cls = a.BPF_PROG_TYPE_SCHED_CLS
    for name in ("tc", "tcx"):
        add(f"{name}/ingress", cls, a.BPF_TCX_INGRESS)
        add(f"{name}/egress", cls, a.BPF_TCX_EGRESS)
    add("tc", cls)
    add("classifier", cls)
    add("action", a.BPF_PROG_TYPE_SCHED_ACT)
    add("netkit/primary", cls, a.BPF_NETKIT_PRIMARY)
    add("netkit/peer", cls, a.BPF_NETKIT_PEER)

    for name in ("tracepoint", "tp"):
        both(name, a.BPF_PROG_TYPE_TRACEPOINT, 0)
    for name in ("raw_tracepoint", "raw_tp"):
        both(name, a.BPF_PROG_TYPE_RAW_TRACEPOINT, 0)
        add(f"{name}.w+", a.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE)

    tracing = a.BPF_PROG_TYPE_TRACING
    both("tp_btf", tracing, a.BPF_TRACE_RAW_TP, btf=("btf_trace_", "TYPEDEF"))
    both("fentry", tracing, a.BPF_TRACE_FENTRY, btf=_FUNC)
    both("fmod_ret", tracing, a.BPF_MODIFY_RETURN, btf=_FUNC)
    both("fexit", tracing, a.BPF_TRACE_FEXIT, btf=_FUNC)
    both("fsession", tracing, a.BPF_TRACE_FSESSION, btf=_FUNC)
    both("fentry.multi", tracing, a.BPF_TRACE_FENTRY_MULTI, multi=True)
    both("fexit.multi", tracing, a.BPF_TRACE_FEXIT_MULTI, multi=True)
    both("fsession.multi", tracing, a.BPF_TRACE_FSESSION_MULTI, multi=True)
    add("freplace+", a.BPF_PROG_TYPE_EXT, btf=_FUNC)
    lsm = ("bpf_lsm_", "FUNC")
    both("lsm", a.BPF_PROG_TYPE_LSM, a.BPF_LSM_MAC, btf=lsm)
    add("lsm_cgroup+", a.BPF_PROG_TYPE_LSM, a.BPF_LSM_CGROUP, btf=lsm)
    both("iter", tracing, a.BPF_TRACE_ITER, btf=("bpf_iter_", "FUNC"))
    add("syscall", a.BPF_PROG_TYPE_SYSCALL, 0, SLEEPABLE)

    xdp = a.BPF_PROG_TYPE_XDP
    for name, attach in (("/devmap", a.BPF_XDP_DEVMAP), ("/cpumap", a.BPF_XDP_CPUMAP)):
        add(f"xdp.frags{name}", xdp, attach, FRAGS)
        add(f"xdp{name}", xdp, attach)
    add("xdp.frags", xdp, a.BPF_XDP, FRAGS)
    add("xdp", xdp, a.BPF_XDP, optional_attach_type=True)

    add("perf_event", a.BPF_PROG_TYPE_PERF_EVENT)
    add("lwt_in", a.BPF_PROG_TYPE_LWT_IN)
    add("lwt_out", a.BPF_PROG_TYPE_LWT_OUT)
    add("lwt_xmit", a.BPF_PROG_TYPE_LWT_XMIT)
    add("lwt_seg6local", a.BPF_PROG_TYPE_LWT_SEG6LOCAL)

    def optional(pattern: str, prog: int, attach: int) -> None:
        add(pattern, prog, attach, optional_attach_type=True)

    optional("sockops", a.BPF_PROG_TYPE_SOCK_OPS, a.BPF_CGROUP_SOCK_OPS)
    skb = a.BPF_PROG_TYPE_SK_SKB
    optional("sk_skb/stream_parser", skb, a.BPF_SK_SKB_STREAM_PARSER)
    optional("sk_skb/stream_verdict", skb, a.BPF_SK_SKB_STREAM_VERDICT)
    optional("sk_skb/verdict", skb, a.BPF_SK_SKB_VERDICT)
    add("sk_skb", skb)
    optional("sk_msg", a.BPF_PROG_TYPE_SK_MSG, a.BPF_SK_MSG_VERDICT)
    optional("lirc_mode2", a.BPF_PROG_TYPE_LIRC_MODE2, a.BPF_LIRC_MODE2)
    optional("flow_dissector", a.BPF_PROG_TYPE_FLOW_DISSECTOR, a.BPF_FLOW_DISSECTOR)

    cgroup_skb = a.BPF_PROG_TYPE_CGROUP_SKB
    optional("cgroup_skb/ingress", cgroup_skb, a.BPF_CGROUP_INET_INGRESS)
    optional("cgroup_skb/egress", cgroup_skb, a.BPF_CGROUP_INET_EGRESS)
    add("cgroup/skb", cgroup_skb)
    sock = a.BPF_PROG_TYPE_CGROUP_SOCK
    add("cgroup/sock_create", sock, a.BPF_CGROUP_INET_SOCK_CREATE)
    add("cgroup/sock_release", sock, a.BPF_CGROUP_INET_SOCK_RELEASE)
    optional("cgroup/sock", sock, a.BPF_CGROUP_INET_SOCK_CREATE)
    add("cgroup/post_bind4", sock, a.BPF_CGROUP_INET4_POST_BIND)
    add("cgroup/post_bind6", sock, a.BPF_CGROUP_INET6_POST_BIND)
    addr = a.BPF_PROG_TYPE_CGROUP_SOCK_ADDR
    for name, attach in (
        ("bind4", a.BPF_CGROUP_INET4_BIND),
        ("bind6", a.BPF_CGROUP_INET6_BIND),
        ("connect4", a.BPF_CGROUP_INET4_CONNECT),
        ("connect6", a.BPF_CGROUP_INET6_CONNECT),
        ("connect_unix", a.BPF_CGROUP_UNIX_CONNECT),
        ("sendmsg4", a.BPF_CGROUP_UDP4_SENDMSG),
        ("sendmsg6", a.BPF_CGROUP_UDP6_SENDMSG),
        ("sendmsg_unix", a.BPF_CGROUP_UNIX_SENDMSG),
        ("recvmsg4", a.BPF_CGROUP_UDP4_RECVMSG),
        ("recvmsg6", a.BPF_CGROUP_UDP6_RECVMSG),
        ("recvmsg_unix", a.BPF_CGROUP_UNIX_RECVMSG),
        ("getpeername4", a.BPF_CGROUP_INET4_GETPEERNAME),
        ("getpeername6", a.BPF_CGROUP_INET6_GETPEERNAME),
        ("getpeername_unix", a.BPF_CGROUP_UNIX_GETPEERNAME),
        ("getsockname4", a.BPF_CGROUP_INET4_GETSOCKNAME),
        ("getsockname6", a.BPF_CGROUP_INET6_GETSOCKNAME),
        ("getsockname_unix", a.BPF_CGROUP_UNIX_GETSOCKNAME),
    ):
        add(f"cgroup/{name}", addr, attach)
    add("cgroup/sysctl", a.BPF_PROG_TYPE_CGROUP_SYSCTL, a.BPF_CGROUP_SYSCTL)
    sockopt = a.BPF_PROG_TYPE_CGROUP_SOCKOPT
    add("cgroup/getsockopt", sockopt, a.BPF_CGROUP_GETSOCKOPT)
    add("cgroup/setsockopt", sockopt, a.BPF_CGROUP_SETSOCKOPT)
    optional("cgroup/dev", a.BPF_PROG_TYPE_CGROUP_DEVICE, a.BPF_CGROUP_DEVICE)

    both("struct_ops", a.BPF_PROG_TYPE_STRUCT_OPS, 0)
    add("sk_lookup", a.BPF_PROG_TYPE_SK_LOOKUP, a.BPF_SK_LOOKUP)
    add("netfilter", a.BPF_PROG_TYPE_NETFILTER, a.BPF_NETFILTER)
    return out


SECTIONS: tuple[SectionDef, ...] = tuple(_table())
_EXACT = {d.prefix: d for d in reversed(SECTIONS)}


def split(section: str) -> tuple[str, bool]:
    """(name without a leading "?", whether its programs are loaded by default)."""
    if section.startswith("?"):
        return section[1:], False
    return section, True


def find(section: str) -> tuple[SectionDef, str | None] | None:
    """The definition for a section's name (without "?") and its target, or None if unknown."""
    exact = _EXACT.get(section)
    if exact is not None:
        return exact, None
    cut = section.find("/")
    while cut >= 0:  # "uprobe//usr/bin/x:f" has slashes in its target
        definition = _EXACT.get(section[:cut])
        if definition is not None and definition.takes_target:
            return definition, section[cut + 1 :]
        cut = section.find("/", cut + 1)
    return None


def nearest(section: str) -> list[str]:
    """Known names that look like an unknown one, nearest first (at most three)."""
    import difflib

    head = section.split("/", 1)[0]
    names = list(_EXACT)
    return difflib.get_close_matches(section, names, 3) or difflib.get_close_matches(head, names, 3)
