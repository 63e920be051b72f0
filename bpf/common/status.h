/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The part of a policy's status that is the same for all, as text, for readers that must not hold a
 * map fd. One item a line, a keyword first, then words or name-value pairs.
 *
 * Before it includes this a policy defines operation_names[OPERATIONS][16].
 */
#ifndef BPF_COMMON_STATUS_H
#define BPF_COMMON_STATUS_H

#include "state.h"

/* bpf_loop and not C loops: the verifier walks each body once or twice and not once an element. */
#define PRINT_ID(function, ids, count, keyword)                                \
	static long function(u32 i, struct seq_file **seq)                     \
	{                                                                      \
		if (i < (count) && (ids)[i])                                   \
			seq_print(*seq, keyword " %u\n", (ids)[i]);            \
		return 0;                                                      \
	}
PRINT_ID(print_map_id, guard_map_ids, POLICY_MAX_MAPS, "guard_map")
PRINT_ID(print_program_id, guard_program_ids, POLICY_MAX_PROGRAMS, "guard_program")
PRINT_ID(print_link_id, guard_link_ids, POLICY_MAX_LINKS, "guard_link")

static long print_counter(u32 operation, struct seq_file **seq)
{
	struct policy_counter *counter = bpf_map_lookup_elem(&counters, &operation);

	if (counter && operation < OPERATIONS)
		seq_print(*seq,
			  "counter %s allowed %llu denied %llu audited %llu dropped %llu\n",
			  (u64)operation_names[operation], counter->allowed, counter->denied,
			  counter->audited, counter->dropped);
	return 0;
}

/* Which policy this is, its owner, and what is guarded; at most 2.2 KiB. */
static __always_inline void print_guard(struct seq_file *seq)
{
	seq_print(seq, "version %u\ngeneration %u\nkept %u\nevents_map %u\n", policy_version,
		  generation, kept, cast_to(&events, struct bpf_map)->id);
	seq_print(seq, "owner %u start_ticks %llu\n", owner_tgid, owner_start_ticks);
	if (deputy_tgid)
		seq_print(seq, "deputy %u start_ticks %llu\n", deputy_tgid, deputy_start_ticks);
	bpf_loop(POLICY_MAX_MAPS, print_map_id, &seq, 0);
	bpf_loop(POLICY_MAX_PROGRAMS, print_program_id, &seq, 0);
	bpf_loop(POLICY_MAX_LINKS, print_link_id, &seq, 0);
}

static __always_inline void print_counters(struct seq_file *seq)
{
	bpf_loop(OPERATIONS, print_counter, &seq, 0);
}

#endif
