/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fills a ring buffer as fast as the kernel can, and a hash map to be updated: for tests and
 * measurements of scale.
 */
#include "bpf.h"

struct flood_args {
	u32 count;
	u32 size; /* of the records: 16, 64 or 256 */
};

struct flood_args args_type;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

struct {
	__uint(type, 1); /* HASH */
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, u64);
} table SEC(".maps");

u64 sent;
u64 dropped;

/* Each record begins with its number, so that its reader sees what is missing. */
#define FLOOD(bytes)                                                    \
	static long flood_##bytes(u32 index, void *context)             \
	{                                                               \
		u64 *record = bpf_ringbuf_reserve(&ring, bytes, 0);     \
									\
		if (record) {                                           \
			record[0] = sent + dropped;                     \
			record[1] = bytes;                              \
			sent++;                                         \
			bpf_ringbuf_submit(record, 0);                  \
		} else {                                                \
			dropped++;                                      \
		}                                                       \
		return 0;                                               \
	}

FLOOD(16)
FLOOD(64)
FLOOD(256)

/* Tries to send `count` records; one call at a time. Gives 0, or 1 for an unknown size. */
SEC("syscall") int flood(struct flood_args *args)
{
	u32 count = args->count;

	switch (args->size) {
	case 16:
		bpf_loop(count, flood_16, NULL, 0);
		return 0;
	case 64:
		bpf_loop(count, flood_64, NULL, 0);
		return 0;
	case 256:
		bpf_loop(count, flood_256, NULL, 0);
		return 0;
	}
	return 1;
}
