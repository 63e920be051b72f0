/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the loader must understand, in one object: maps of maps with initial values, program
 * arrays, map_extra, pinning by name, custom data sections, subprograms in every form, function
 * pointers, kfuncs weak and strong, ksyms, kconfig values, CO-RE.
 */
#include "bpf.h"

#define __kconfig __attribute__((section(".kconfig")))
#define __hidden __attribute__((visibility("hidden")))
#define __array(name, value) typeof(value) *name[]
#define __ulong(name, value) enum { name##_value = value } name

struct inner_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} inner_a SEC(".maps"), inner_b SEC(".maps");

struct {
	__uint(type, 12); /* ARRAY_OF_MAPS */
	__uint(max_entries, 4);
	__type(key, u32);
	__array(values, struct inner_map);
} outer SEC(".maps") = {.values = {[1] = &inner_a, [3] = &inner_b}};

int tail_target(void *ctx);
struct {
	__uint(type, 3); /* PROG_ARRAY */
	__uint(max_entries, 3);
	__uint(key_size, sizeof(u32));
	__array(values, int(void *));
} jumps SEC(".maps") = {.values = {[2] = (void *)&tail_target}};

struct {
	__uint(type, 30); /* BLOOM_FILTER */
	__uint(max_entries, 16);
	__type(value, u32);
	__uint(map_extra, 3);
} bloom SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, 1);
	__type(key, u32);
	__type(value, u64);
} pinned SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 5000); /* no power of two: the loader rounds up */
} ring SEC(".maps");

struct pair {
	u16 left;
	s32 right;
};

const volatile u32 limit = 7;
const volatile struct pair setting = {1, -2};
const volatile char label[8] = "label";
u64 counter;
s32 start = -5;
static u32 private_count;
u32 shared_value SEC(".data.shared") = 0x1234;
const volatile u8 table[4] SEC(".rodata.table") = {1, 2, 3, 4};

extern int LINUX_KERNEL_VERSION __kconfig;
extern bool CONFIG_SURELY_NOT_THERE __kconfig __weak;
extern char CONFIG_BPF_SYSCALL __kconfig __weak;

extern const void bpf_prog_put __ksym __weak;
extern const int no_such_variable __ksym __weak;
extern void no_such_kfunc(void) __ksym __weak;
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;

static long (*const bpf_tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static void *(*const bpf_map_lookup)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_push_elem)(void *map, const void *value, u64 flags) = (void *)87;

struct task_struct {
	int pid;
	int tgid;
	struct task_struct *real_parent;
} __core;
struct task_struct___missing {
	int surely_no_member;
} __core;

/* A static subprogram that calls another one, and is called from two programs. */
static __noinline u64 leaf(u64 value)
{
	return value * limit + private_count++;
}
static __noinline u64 branch(u64 value)
{
	return leaf(value) + leaf(value + 1);
}
/* Global ones: verified on their own; hidden: with their callers. */
__noinline int global_sub(u32 value)
{
	return value > 3 ? value : (int)leaf(value);
}
__hidden __noinline int hidden_sub(struct task_struct *task)
{
	return task->pid;
}
__weak __noinline int weak_sub(u32 value)
{
	return value + 1;
}

static long callback(u32 index, void *context)
{
	counter += index;
	return index > 3;
}

SEC("raw_tp/sched_switch")
int first(u64 *ctx)
{
	u32 key = 1;
	void *map = bpf_map_lookup(&outer, &key);

	counter += branch(*ctx) + weak_sub(3);
	bpf_loop(limit, callback, NULL, 0);
	if (map) {
		u64 *found = bpf_map_lookup(map, &key);

		if (found)
			counter += *found;
	}
	bpf_map_push_elem(&bloom, &key, 0);
	bpf_tail_call(ctx, &jumps, 2);
	return start + setting.right + label[0] + table[1] + shared_value;
}

SEC("raw_tp/sched_switch")
int tail_target(void *ctx)
{
	u32 key = 0;
	u64 *value = bpf_map_lookup(&pinned, &key);
	void *record = bpf_ringbuf_reserve(&ring, 8, 0);

	if (record)
		bpf_ringbuf_submit(record, 0);
	return value ? global_sub(*value) : 0;
}

SEC("tp_btf/sched_process_exit")
int tracing(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct task_struct___missing *other = (void *)task;
	u64 sum = LINUX_KERNEL_VERSION + CONFIG_SURELY_NOT_THERE + CONFIG_BPF_SYSCALL;

	if (core_field_exists(other->surely_no_member))
		sum += other->surely_no_member;
	if (no_such_kfunc)
		no_such_kfunc();
	if (&no_such_variable)
		sum += no_such_variable;
	if (&bpf_prog_put)
		sum += 1;
	bpf_rcu_read_lock();
	sum += hidden_sub(task->real_parent);
	bpf_rcu_read_unlock();
	counter = sum;
	return 0;
}

SEC("?socket")
int optional(void *ctx)
{
	return 0;
}

LICENSE("GPL");
