/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Variables in an arena (kernel 6.9), with initial values. */

#define SEC(name) __attribute__((section(name), used))
#define __arena __attribute__((address_space(1)))

struct {
	int (*type)[33];	/* BPF_MAP_TYPE_ARENA */
	int (*map_flags)[1024]; /* BPF_F_MMAPABLE */
	int (*max_entries)[8];	/* pages */
} arena SEC(".maps");

int __arena first SEC(".addr_space.1") = 41;
long __arena second SEC(".addr_space.1") = 7;

SEC("syscall")
int sum(void *ctx)
{
	/* A program has the arena that it refers to. */
	asm volatile("" ::"r"(&arena));
	first += 1;
	return first + (int)second;
}

char _license[] SEC("license") = "GPL";
