/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One small program for each way of attaching. Tests load one of them at a time; it counts what
 * it sees in `count` and lets everything pass. Programs of tracing count only what the process
 * `pid` does, so that the machine's other work does not look like an effect.
 */
#include "bpf.h"

#define PASS_XDP 2
#define NEXT_TC (-1)

u64 count;
u64 cookie;
u64 seen; /* whatever the program says of the event */
u32 pid;

static u64 (*const bpf_get_attach_cookie)(void *ctx) = (void *)174;
static long (*const bpf_perf_event_output)(void *ctx, void *map, u64 flags, void *data,
					   u64 size) = (void *)25;
static long (*const bpf_user_ringbuf_drain)(void *map, void *callback, void *context,
					    u64 flags) = (void *)209;
static long (*const bpf_dynptr_read)(void *dst, u32 len, const void *src, u32 offset,
				     u64 flags) = (void *)201;

static __always_inline bool own(void)
{
	return bpf_get_current_pid_tgid() >> 32 == pid;
}

static __always_inline int traced(void)
{
	if (own())
		__sync_fetch_and_add(&count, 1);
	return 0;
}

static __always_inline int probed(void *ctx)
{
	if (own()) {
		cookie = bpf_get_attach_cookie(ctx);
		__sync_fetch_and_add(&count, 1);
	}
	return 0;
}

static __always_inline int counted(int verdict)
{
	__sync_fetch_and_add(&count, 1);
	return verdict;
}

/* --- probes: perf links and multi links --- */

SEC("kprobe/do_sys_openat2") int kprobe_open(void *ctx) { return probed(ctx); }
SEC("kretprobe/do_sys_openat2") int kretprobe_open(void *ctx) { return probed(ctx); }
SEC("ksyscall/getpriority") int ksyscall_prio(void *ctx) { return probed(ctx); }
SEC("kretsyscall/getpriority") int kretsyscall_prio(void *ctx) { return probed(ctx); }
SEC("kprobe.multi/do_sys_openat?") int kprobe_multi(void *ctx) { return probed(ctx); }
SEC("kretprobe.multi/do_sys_openat2") int kretprobe_multi(void *ctx) { return probed(ctx); }
SEC("kprobe.session/do_sys_openat2") int kprobe_session(void *ctx) { return probed(ctx); }
SEC("uprobe") int on_uprobe(void *ctx) { return probed(ctx); }
SEC("uretprobe") int on_uretprobe(void *ctx) { return probed(ctx); }
SEC("uprobe/libc.so.6:getppid") int uprobe_auto(void *ctx) { return probed(ctx); }
SEC("uprobe.multi") int uprobe_multi(void *ctx) { return probed(ctx); }
SEC("uretprobe.multi") int uretprobe_multi(void *ctx) { return probed(ctx); }
SEC("uprobe.multi/libc.so.6:getpp*") int uprobe_multi_auto(void *ctx) { return probed(ctx); }
SEC("uprobe.session") int uprobe_session(void *ctx) { return probed(ctx); }
SEC("tracepoint/syscalls/sys_enter_getpriority") int tracepoint(void *ctx) { return probed(ctx); }
SEC("perf_event") int on_perf_event(void *ctx) { return probed(ctx); }

/* --- raw tracepoints and trampolines --- */

SEC("raw_tp/sys_enter") int raw_tp(void *ctx) { return traced(); }
SEC("tp_btf/sys_enter") int tp_btf(u64 *ctx) { return traced(); }
SEC("fentry/do_sys_openat2") int fentry(u64 *ctx) { return probed(ctx); }
SEC("fexit/do_sys_openat2") int fexit(u64 *ctx) { return probed(ctx); }
SEC("fsession/do_sys_openat2") int fsession(u64 *ctx) { return traced(); }
SEC("fentry.multi/do_sys_openat2") int fentry_multi(u64 *ctx) { return probed(ctx); }
SEC("fexit.multi/do_sys_open*") int fexit_multi(u64 *ctx) { return probed(ctx); }
SEC("fsession.multi") int fsession_multi(u64 *ctx) { return probed(ctx); }
/* Refuses getsid(2) of a process given by its number with EPERM, to the process `pid` alone. */
SEC("fmod_ret/security_task_getsid") int fmod_ret(u64 *ctx)
{
	if (!own())
		return 0;
	return counted(-1);
}
SEC("lsm/task_getsid") int lsm(u64 *ctx)
{
	if (!own())
		return 0;
	return counted(-1);
}
/* 0 of a cgroup's LSM program is EPERM. */
SEC("lsm_cgroup/socket_bind") int lsm_cgroup(u64 *ctx) { return counted(0); }

/* --- network interfaces --- */

SEC("xdp") int on_xdp(void *ctx) { return counted(PASS_XDP); }
SEC("xdp.frags") int xdp_frags(void *ctx) { return counted(PASS_XDP); }
SEC("tcx/ingress") int tcx_ingress(void *ctx) { return counted(NEXT_TC); }
SEC("tcx/egress") int tcx_egress(void *ctx) { return counted(NEXT_TC); }
SEC("tc") int tc_plain(void *ctx) { return counted(NEXT_TC); }
SEC("netkit/primary") int netkit_primary(void *ctx) { return counted(NEXT_TC); }
SEC("netkit/peer") int netkit_peer(void *ctx) { return counted(NEXT_TC); }
SEC("netfilter") int on_netfilter(void *ctx) { return counted(1); }

/* --- network namespaces and sockets --- */

SEC("sk_lookup") int on_sk_lookup(void *ctx) { return counted(1); }
SEC("flow_dissector") int on_flow_dissector(void *ctx) { return counted(129); /* go on without us */ }
SEC("socket") int socket_filter(void *ctx) { return counted(-1); }
SEC("sk_reuseport") int on_sk_reuseport(void *ctx) { return counted(1); }

struct {
	__uint(type, 15); /* SOCKMAP */
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} sockets SEC(".maps");

SEC("sk_msg") int on_sk_msg(void *ctx) { return counted(1); }
SEC("sk_skb/stream_verdict") int sk_skb_verdict(void *ctx) { return counted(1); }

/* --- cgroups --- */

SEC("cgroup_skb/ingress") int skb_ingress(void *ctx) { return counted(1); }
SEC("cgroup_skb/egress") int skb_egress(void *ctx) { return counted(1); }
SEC("cgroup/sock_create") int sock_create(void *ctx) { return counted(1); }
SEC("cgroup/sock_release") int sock_release(void *ctx) { return counted(1); }
SEC("cgroup/post_bind4") int post_bind4(void *ctx) { return counted(1); }
SEC("cgroup/post_bind6") int post_bind6(void *ctx) { return counted(1); }
SEC("cgroup/bind4") int bind4(void *ctx) { return counted(1); }
SEC("cgroup/bind6") int bind6(void *ctx) { return counted(1); }
SEC("cgroup/connect4") int connect4(void *ctx) { return counted(1); }
SEC("cgroup/connect6") int connect6(void *ctx) { return counted(1); }
SEC("cgroup/connect_unix") int connect_unix(void *ctx) { return counted(1); }
SEC("cgroup/sendmsg4") int sendmsg4(void *ctx) { return counted(1); }
SEC("cgroup/recvmsg4") int recvmsg4(void *ctx) { return counted(1); }
SEC("cgroup/getsockname4") int getsockname4(void *ctx) { return counted(1); }
SEC("cgroup/getpeername4") int getpeername4(void *ctx) { return counted(1); }
SEC("cgroup/sysctl") int sysctl(void *ctx) { return counted(1); }
SEC("cgroup/getsockopt") int getsockopt(void *ctx) { return counted(1); }
SEC("cgroup/setsockopt") int setsockopt(void *ctx) { return counted(1); }
SEC("cgroup/dev") int device(void *ctx) { return counted(1); }
SEC("sockops") int on_sockops(void *ctx) { return counted(1); }

/* --- iterators --- */

struct bpf_iter_meta {
	struct seq_file *seq;
} __core;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __core;

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	void *map;
	void *key;
	void *value;
} __core;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} elements SEC(".maps");

SEC("iter/task") int iter_task(struct bpf_iter__task *ctx)
{
	if (ctx->task)
		counted(0);
	return 0;
}

SEC("iter/bpf_map_elem") int iter_elements(struct bpf_iter__bpf_map_elem *ctx)
{
	u32 *key = ctx->key;
	u64 *value = ctx->value;

	if (!key || !value)
		return 0;
	counted(0);
	seq_print(ctx->meta->seq, "%d=%d\n", *key, *value);
	return 0;
}

/* --- a program to replace a function of, and what replaces it --- */

__noinline int replaceable(u64 number)
{
	volatile u64 kept = number;
	return kept > 100 ? 2 : 1;
}

SEC("syscall") int call_replaceable(u64 *ctx)
{
	return replaceable(ctx[0]);
}

SEC("freplace/replaceable") int replacement(u64 number)
{
	seen = number;
	return counted(42);
}

SEC("fentry/replaceable") int of_program(u64 *ctx)
{
	seen = ctx[0];
	return counted(0);
}

SEC("fexit/replaceable") int after_program(u64 *ctx)
{
	seen = ctx[0];
	return counted(0);
}

/* --- live objects --- */

struct {
	__uint(type, 4); /* PERF_EVENT_ARRAY */
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

struct {
	__uint(type, 31); /* USER_RINGBUF */
	__uint(max_entries, 4096);
} from_user SEC(".maps");

struct number_event {
	u64 number;
	u32 first;
	u32 second;
};

struct number_event event_type; /* so that its type is in BTF */

SEC("raw_tp/sys_enter") int perf_output(u64 *ctx)
{
	struct number_event event = {.first = 1, .second = 2};

	if (!own() || ctx[1] != 140) /* getpriority on x86-64 */
		return 0;
	event.number = counted(7) + count;
	bpf_perf_event_output(ctx, &events, 0xffffffff /* this CPU */, &event, sizeof(event));
	return 0;
}

static long drained(void *dynptr, void *context)
{
	struct number_event event = {};

	if (bpf_dynptr_read(&event, sizeof(event), dynptr, 0, 0))
		return 0;
	seen += event.number;
	counted(0);
	return 0;
}

SEC("raw_tp/sys_enter") int drain(u64 *ctx)
{
	if (own() && ctx[1] == 140)
		bpf_user_ringbuf_drain(&from_user, drained, NULL, 0);
	return 0;
}

LICENSE("GPL");
