/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Live objects: an arena, a context with a type, tail calls, maps in maps. */
#include "bpf.h"

#define __arena __attribute__((address_space(1)))
#define __array(name, value) typeof(value) *name[]

extern void __arena *bpf_arena_alloc_pages(void *map, void __arena *address, u32 pages, int node,
					   u64 flags) __ksym;
static long (*const bpf_tail_call)(void *ctx, void *map, u32 index) = (void *)12;

struct {
	__uint(type, 33); /* ARENA */
	__uint(map_flags, 1 << 10); /* BPF_F_MMAPABLE */
	__uint(max_entries, 4); /* pages */
} arena SEC(".maps");

struct cell {
	u64 number;
	struct cell __arena *next;
};

struct cell __arena *list;

/* Two cells in a new page; the second is what user space reads the address of from the first. */
SEC("syscall") int make_list(void *ctx)
{
	struct cell __arena *cell = bpf_arena_alloc_pages(&arena, NULL, 1, -1, 0);

	if (!cell)
		return 1;
	cell[0].number = 11;
	cell[0].next = &cell[1];
	cell[1].number = 22;
	cell[1].next = NULL;
	list = cell;
	return 0;
}

u64 sum;

/* The sum over the list as user space has left it. */
SEC("syscall") int sum_list(void *ctx)
{
	struct cell __arena *cell = list;

	/* A program belongs to an arena by referring to the map. */
	asm volatile("" : : "r"(&arena));
	sum = 0;
	for (int i = 0; i < 8 && cell; i++) {
		sum += cell->number;
		cell = cell->next;
	}
	return 0;
}

struct args {
	u32 left;
	u32 right;
	u64 result;
};

struct args args_type;

SEC("syscall") int multiply(struct args *args)
{
	args->result = (u64)args->left * args->right;
	return 5;
}

struct {
	__uint(type, 3); /* PROG_ARRAY */
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__uint(value_size, 4);
} jumps SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
};

struct {
	__uint(type, 13); /* HASH_OF_MAPS */
	__uint(max_entries, 4);
	__type(key, u32);
	__array(values, struct inner);
} outer SEC(".maps");

/* Two XDP programs: the first goes on in the second, which reads a map within a map. */
SEC("xdp") int second(void *ctx)
{
	u32 key = 7, zero = 0;
	void *found = bpf_map_lookup_elem(&outer, &key);
	u64 *value;

	if (!found)
		return 1;
	value = bpf_map_lookup_elem(found, &zero);
	return value ? *value : 1;
}

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
};

SEC("xdp") int first(struct xdp_md *ctx)
{
	sum = ctx->ingress_ifindex * 1000 + ctx->rx_queue_index;
	bpf_tail_call(ctx, &jumps, 1);
	return 0;
}

LICENSE("GPL");
