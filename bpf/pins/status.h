/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* State, guarded filesystems, registered ids and counters as text (fsaccess/status.h says why so). */
#ifndef BPF_PINS_STATUS_H
#define BPF_PINS_STATUS_H

#include "state.h"

static const char operation_names[PINS_OP_COUNT][16] = {
	[PINS_OP_UNLINK] = "unlink",
	[PINS_OP_RMDIR] = "rmdir",
	[PINS_OP_RENAME] = "rename",
	[PINS_OP_CREATE] = "create",
	[PINS_OP_ATTRIBUTES] = "attributes",
	[PINS_OP_OPEN] = "open",
	[PINS_OP_UMOUNT] = "umount",
	[PINS_OP_MOUNT] = "mount",
	[PINS_OP_MOVE] = "move",
	[PINS_OP_PIVOT] = "pivot",
	[PINS_OP_REMOUNT] = "remount",
	[PINS_OP_BPF_MAP] = "bpf_map",
	[PINS_OP_BPF_PROGRAM] = "bpf_program",
	[PINS_OP_BPF_LINK] = "bpf_link",
	[PINS_OP_LINK_CHANGE] = "link_change",
	[PINS_OP_PTRACE] = "ptrace",
	[PINS_OP_SYSCTL] = "sysctl",
	[PINS_OP_GONE] = "gone",
};

#include "../common/status.h"

/* What one call prints must fit into 32 KiB (kernel/bpf/bpf_iter.c). */
enum { MAX_ID_LINES = 1000 };

struct print_context {
	struct seq_file *seq;
	u32 lines;
};

static long print_registered(struct bpf_map *map __attribute__((unused)), const u64 *key,
			     const u32 *value __attribute__((unused)),
			     struct print_context *context)
{
	u32 kind = *key >> 32;
	u32 id = (u32)*key;

	if (context->lines++ >= MAX_ID_LINES)
		return 0;
	if (kind == PINS_KIND_MAP)
		seq_print(context->seq, "registered_map %u\n", id);
	else if (kind == PINS_KIND_PROGRAM)
		seq_print(context->seq, "registered_program %u\n", id);
	else
		seq_print(context->seq, "registered_link %u\n", id);
	return 0;
}

SEC("?iter/bpf_map")
int pins_status(struct bpf_iter__bpf_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct print_context context = {.seq = seq};

	/* Called once for each map of the system; everything is printed the first time. */
	if (ctx->meta->seq_num)
		return 0;
	/* That is 0 once more, but the verifier does not know (see fsaccess/status.h). */
	context.lines = (u32)*(const volatile u64 *)&ctx->meta->seq_num;
	seq_print(seq, "armed %u\naudit %u\nstrict %u\n", armed, audit, strict);
#pragma clang loop unroll(full)
	for (u32 i = 0; i < PINS_MAX_FILESYSTEMS; i++)
		if (guarded[i].superblock)
			seq_print(seq, "filesystem %u:%u\n", guarded[i].device >> 20,
				  guarded[i].device & 0xfffff);
	print_guard(seq);
	print_counters(seq);
	bpf_for_each_map_elem(&pins_ids, print_registered, &context, 0);
	if (context.lines > MAX_ID_LINES)
		seq_print(seq, "truncated %u\n", context.lines - MAX_ID_LINES);
	return 0;
}

#endif
