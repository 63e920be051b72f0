/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A small object for the benchmark, of the kind that services embed: one program that reports
 * writes to sysctls. Every kind of work is in it once: a ring buffer, .rodata, .bss, CO-RE
 * relocations in one place. It loads on any kernel with BTF and is never attached.
 */
#include "bpf.h"

struct bpf_sysctl {
	u32 write;
	u32 file_pos;
};

struct task_struct {
	s32 tgid;
	struct task_struct *real_parent;
	u64 start_boottime;
} __core;

struct event {
	u64 time;
	u64 cgroup;
	s32 tgid;
	s32 parent;
	char comm[16];
	char name[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} events SEC(".maps");

const volatile u32 only_tgid;
u64 reported;
u64 dropped;

SEC("cgroup/sysctl")
int report(struct bpf_sysctl *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct event *event;

	if (!ctx->write || (only_tgid && (u32)task->tgid != only_tgid))
		return 1;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&dropped, 1);
		return 1;
	}
	event->time = task->start_boottime;
	event->cgroup = bpf_get_current_cgroup_id();
	event->tgid = task->tgid;
	event->parent = task->real_parent->tgid;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (bpf_sysctl_get_name(ctx, event->name, sizeof(event->name), 0) < 0)
		event->name[0] = 0;
	bpf_ringbuf_submit(event, 0);
	__sync_fetch_and_add(&reported, 1);
	return 1;
}

LICENSE("GPL");
