/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that no link attaches: those that run from the entry of a map (xdp/devmap, xdp/cpumap),
 * and those that routes, traffic control and devices take by an fd or a pin.
 */
#include "bpf.h"

u64 redirected, arrived;

static long (*const bpf_redirect_map)(void *map, u64 key, u64 flags) = (void *)51;

struct redirect_to { /* struct bpf_devmap_val */
	u32 ifindex;
	struct { /* a union there: an fd when it is written, an id when it is read */
		int fd;
	} bpf_prog;
};

struct process_on { /* struct bpf_cpumap_val */
	u32 qsize;
	struct {
		int fd;
	} bpf_prog;
};

struct {
	__uint(type, 14); /* DEVMAP */
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, struct redirect_to);
} ports SEC(".maps");

struct {
	__uint(type, 25); /* DEVMAP_HASH */
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, struct redirect_to);
} port_table SEC(".maps");

struct {
	__uint(type, 16); /* CPUMAP */
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct process_on);
} processors SEC(".maps");

static __always_inline int counted(u64 *counter, int verdict)
{
	__sync_fetch_and_add(counter, 1);
	return verdict;
}

SEC("xdp") int to_port(void *ctx)
{
	counted(&redirected, 0);
	return bpf_redirect_map(&ports, 0, 0);
}

SEC("xdp") int to_port_of_table(void *ctx)
{
	counted(&redirected, 0);
	return bpf_redirect_map(&port_table, 7, 0);
}

SEC("xdp") int to_processor(void *ctx)
{
	counted(&redirected, 0);
	return bpf_redirect_map(&processors, 0, 0);
}

SEC("xdp/devmap") int at_port(void *ctx) { return counted(&arrived, 2 /* PASS */); }
SEC("xdp/cpumap") int at_processor(void *ctx) { return counted(&arrived, 2); }
SEC("xdp.frags/devmap") int at_port_frags(void *ctx) { return counted(&arrived, 2); }
SEC("xdp.frags/cpumap") int at_processor_frags(void *ctx) { return counted(&arrived, 2); }

SEC("lwt_in") int route_in(void *ctx) { return counted(&arrived, 0 /* BPF_OK */); }
SEC("lwt_out") int route_out(void *ctx) { return counted(&arrived, 0); }
SEC("lwt_xmit") int route_xmit(void *ctx) { return counted(&arrived, 0); }
SEC("lwt_seg6local") int route_segment(void *ctx) { return counted(&arrived, 0); }

SEC("classifier") int classify(void *ctx) { return counted(&arrived, 0 /* TC_ACT_OK */); }
SEC("action") int act(void *ctx) { return counted(&arrived, 0); }

SEC("lirc_mode2") int remote_control(void *ctx) { return counted(&arrived, 0); }
SEC("sk_reuseport/migrate") int migrate(void *ctx) { return counted(&arrived, 1); }
SEC("sk_skb/stream_parser") int parse_stream(void *ctx) { return counted(&arrived, 0); }
SEC("sk_skb/verdict") int skb_verdict(void *ctx) { return counted(&arrived, 1); }
SEC("sk_skb") int plain_sk_skb(void *ctx) { return counted(&arrived, 1); }
SEC("cgroup/skb") int cgroup_skb_old(void *ctx) { return counted(&arrived, 1); }
SEC("cgroup/sock") int cgroup_sock_old(void *ctx) { return counted(&arrived, 1); }
SEC("raw_tracepoint.w/nbd_send_request") int writable(void *ctx) { return counted(&arrived, 0); }
SEC("syscall") int call(void *ctx) { return counted(&arrived, 5); }

LICENSE("GPL");
