/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* State and counters as text, for readers that must not hold a map fd: like fsaccess/status.h. */
#ifndef BPF_USERNS_STATUS_H
#define BPF_USERNS_STATUS_H

#include "state.h"

static const char operation_names[USERNS_OP_COUNT][16] = {
	[USERNS_OP_CHOWN] = "chown",
	[USERNS_OP_MKDIR] = "mkdir",
	[USERNS_OP_MKNOD] = "mknod",
	[USERNS_OP_SYMLINK] = "symlink",
	[USERNS_OP_LINK] = "link",
	[USERNS_OP_WHITEOUT] = "whiteout",
	[USERNS_OP_TMPFILE] = "tmpfile",
	[USERNS_OP_MQUEUE] = "mqueue",
	[USERNS_OP_OVERLAY] = "overlay",
	[USERNS_OP_SETGROUPS] = "setgroups",
	[USERNS_OP_BPF_MAP] = "bpf_map",
	[USERNS_OP_BPF_PROGRAM] = "bpf_program",
	[USERNS_OP_BPF_LINK] = "bpf_link",
	[USERNS_OP_PTRACE] = "ptrace",
	[USERNS_OP_ACL] = "acl",
	[USERNS_OP_CAPABILITY] = "capability",
	[USERNS_OP_IPC] = "ipc",
	[USERNS_OP_SUBVOLUME] = "subvolume",
};

#include "../common/status.h"

SEC("?iter/bpf_map")
int userns_status(struct bpf_iter__bpf_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;

	/* Called once for each map of the system; everything is printed the first time. */
	if (ctx->meta->seq_num)
		return 0;
	seq_print(seq, "armed %u\naudit %u\nadministrators %u\nteardown_lost %llu\n", armed, audit,
		  administrators, teardown_lost);
	print_guard(seq);
	print_counters(seq);
	return 0;
}

#endif
