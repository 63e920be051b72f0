/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* LSM programs that allow everything and count: for tests in virtual machines. */
#include "bpf.h"

struct inode {
	u64 i_ino;
} __core;
struct file {
	struct inode *f_inode;
} __core;
struct linux_binprm {
	struct file *file;
} __core;

struct event {
	u64 inode;
	u32 pid;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} events SEC(".maps");

extern struct inode *bpf_real_data_inode(struct file *file) __ksym __weak;

u64 execs;
u64 opens;
u32 has_kfunc;

static __noinline void report(u64 inode)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return;
	event->inode = inode;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
}

SEC("lsm.s/bprm_check_security")
int check_exec(u64 *ctx)
{
	struct linux_binprm *bprm = (void *)ctx[0];

	__sync_fetch_and_add(&execs, 1);
	report(bprm->file->f_inode->i_ino);
	has_kfunc = ksym_exists(bpf_real_data_inode);
	return 0;
}

SEC("lsm/file_open")
int check_open(u64 *ctx)
{
	__sync_fetch_and_add(&opens, 1);
	return 0;
}

LICENSE("GPL");
