/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Programs and types of a kernel module (dm_mod), for tests in virtual machines. */
#include "bpf.h"

struct dm_table {
	unsigned int num_targets;
} __core;
struct dm_no_such_type {
	int member;
} __core;

u64 tables;
u32 offset;
bool known = true;

SEC("fentry/dm_mod:dm_table_complete")
int named(u64 *ctx)
{
	__sync_fetch_and_add(&tables, 1);
	offset = core_offset(struct dm_table, num_targets);
	known = core_type_exists(struct dm_no_such_type);
	return 0;
}

SEC("fentry/dm_table_complete")
int searched(u64 *ctx)
{
	__sync_fetch_and_add(&tables, 1);
	return 0;
}

LICENSE("GPL");
