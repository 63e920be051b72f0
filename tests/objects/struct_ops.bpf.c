/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A TCP congestion control that nobody uses: struct_ops as the loader must understand it. */
#include "bpf.h"

struct sock;

struct tcp_congestion_ops {
	char name[16];
	u32 (*ssthresh)(struct sock *sk);
	u32 (*undo_cwnd)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, u32 ack, u32 acked);
	int member_of_another_kernel;
} __core;

u64 calls;

SEC("struct_ops")
u32 threshold(u64 *ctx)
{
	calls++;
	return 2;
}

SEC("struct_ops/avoid")
void avoid(u64 *ctx)
{
	calls++;
}

SEC("struct_ops")
u32 undo(u64 *ctx)
{
	return 10;
}

SEC(".struct_ops.link")
struct tcp_congestion_ops test_control = {
	.ssthresh = (void *)threshold,
	.cong_avoid = (void *)avoid,
	.undo_cwnd = (void *)undo,
	.name = "pybpf_test",
};

SEC("?.struct_ops.link")
struct tcp_congestion_ops spare_control = {
	.ssthresh = (void *)threshold,
	.cong_avoid = (void *)avoid,
	.undo_cwnd = (void *)undo,
	.name = "pybpf_spare",
};

/* Without a link, as it was before 6.4: in force from being set until its value is deleted. */
SEC("?.struct_ops")
struct tcp_congestion_ops old_control = {
	.ssthresh = (void *)threshold,
	.cong_avoid = (void *)avoid,
	.undo_cwnd = (void *)undo,
	.name = "pybpf_old",
};

LICENSE("GPL");
