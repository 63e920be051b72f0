/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * State, counters and devices as text, for readers that must not hold a map fd.
 *
 * An iterator with no target map. (A map element iterator would do the same with less code, but
 * whoever may open its pin can put a program of his own in its place with BPF_LINK_UPDATE, and that
 * program may write the map's values. In place of this one he gains nothing.) Pinned in bpffs it
 * prints to whoever may read the file. Not loaded unless asked for (the `?`).
 *
 * One item a line, a keyword first, then words or name-value pairs.
 */
#ifndef BPF_FSACCESS_STATUS_H
#define BPF_FSACCESS_STATUS_H

#include "device_mapper.h"
#include "state.h"

/* What one call of the program prints must fit into 32 KiB (kernel/bpf/bpf_iter.c): the lines
 * before the devices take at most 3 KiB, a device's line at most 280 bytes. */
enum { MAX_DEVICE_LINES = 100 };

static const char operation_names[FSACCESS_OP_COUNT][16] = {
	[FSACCESS_OP_EXEC] = "exec",
	[FSACCESS_OP_EXEC_CHECK] = "exec_check",
	[FSACCESS_OP_MMAP] = "mmap",
	[FSACCESS_OP_MPROTECT] = "mprotect",
	[FSACCESS_OP_PTRACE] = "ptrace",
	[FSACCESS_OP_BPF_MAP] = "bpf_map",
	[FSACCESS_OP_BPF_PROGRAM] = "bpf_program",
	[FSACCESS_OP_BPF_LINK] = "bpf_link",
	[FSACCESS_OP_BRK] = "brk",
	[FSACCESS_OP_VERITY] = "verity",
	[FSACCESS_OP_DEVICE_MAPPER] = "device_mapper",
	[FSACCESS_OP_SYSCTL] = "sysctl",
	[FSACCESS_OP_SIGNAL] = "signal",
};

#include "../common/status.h"

struct print_context {
	struct seq_file *seq;
	u32 devices;
};

struct print_digest {
	struct seq_file *seq;
	const struct fsaccess_device *record;
};

static long print_digest_byte(u32 i, struct print_digest *context)
{
	if (i < FSACCESS_DIGEST_SIZE)
		seq_print(context->seq, "%02x", context->record->digest[i]);
	return 0;
}

static long print_device(struct bpf_map *map __attribute__((unused)), const u32 *device,
			 const struct fsaccess_device *record, struct print_context *context)
{
	struct print_digest digest = {.seq = context->seq, .record = record};
	const struct block_device *bdev = cast_to(record->identity, struct block_device);
	struct seq_file *seq = context->seq;
	u32 flags = record->flags;

	/* A swapped table is told as judge_inode() would. */
	if (record->target_type && target_type(target_of(bdev)) != record->target_type)
		flags &= ~FSACCESS_DEVICE_SIGNED;
	if (context->devices++ >= MAX_DEVICE_LINES)
		return 0;
	seq_print(seq, "device %u:%u signed %u lenient %u held %u first_seen %llu changed %llu",
		  *device >> 20, *device & 0xfffff, !!(flags & FSACCESS_DEVICE_SIGNED),
		  !!(flags & FSACCESS_DEVICE_LENIENT), !!(flags & FSACCESS_DEVICE_HELD),
		  record->first_seen, record->changed);
	if (flags & FSACCESS_DEVICE_ROOT_HASH) {
		seq_print(seq, " algorithm %s root_hash ", (u64)record->algorithm);
		bpf_loop(record->digest_length, print_digest_byte, &digest, 0);
	}
	seq_print(seq, "\n", 0);
	return 0;
}

SEC("?iter/bpf_map")
int fsaccess_status(struct bpf_iter__bpf_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct print_context context = {.seq = seq};

	/* Called once for each map of the system; everything is printed the first time. */
	if (ctx->meta->seq_num)
		return 0;
	/* That is 0 once more. The verifier does not know, so it does not walk print_device() for
	 * each value of a count that starts at a constant. */
	context.devices = (u32)*(const volatile u64 *)&ctx->meta->seq_num;
	seq_print(seq, "armed %u\naudit %u\ninitramfs_dev %u:%u\n", armed, audit,
		  initramfs_dev >> 20, initramfs_dev & 0xfffff);
	print_guard(seq);
	print_counters(seq);
	bpf_for_each_map_elem(&verity_devices, print_device, &context, 0);
	if (context.devices > MAX_DEVICE_LINES)
		seq_print(seq, "truncated %u\n", context.devices - MAX_DEVICE_LINES);
	return 0;
}

#endif
