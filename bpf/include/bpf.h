/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a BPF C source needs from its surroundings: integer types, section and map-definition
 * macros, CO-RE builtins, and the helpers and kfuncs these policies call. Only what is used is
 * declared, and nothing is included from libbpf or the kernel tree.
 *
 * Helper numbers are those of enum bpf_func_id (include/uapi/linux/bpf.h), which is stable ABI.
 */
#ifndef BPF_INCLUDE_BPF_H
#define BPF_INCLUDE_BPF_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

/* ELF sections tell a loader the program type and what it attaches to. */
#define SEC(name) __attribute__((section(name), used))
#define LICENSE(text) char LICENSE[] SEC("license") = text

/* BTF-defined maps (section .maps): integers travel as the dimension of an array type. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
/* A function of external linkage, which the verifier walks on its own, for any arguments. */
#define __global __attribute__((noinline))
#define __weak __attribute__((weak))
#define __ksym __attribute__((section(".ksyms")))

/* Every member access of a struct declared so is recorded as a CO-RE relocation. */
#define __core __attribute__((preserve_access_index))

/* Third argument of __builtin_preserve_field_info and ..._type_info (enum bpf_core_relo_kind). */
#define CORE_FIELD_BYTE_OFFSET 0
#define CORE_FIELD_BYTE_SIZE 1
#define CORE_FIELD_EXISTS 2
#define CORE_FIELD_LSHIFT_U64 4
#define CORE_FIELD_RSHIFT_U64 5
#define CORE_TYPE_EXISTS 0
#define CORE_TYPE_ID_TARGET 1

#define core_field_exists(field) __builtin_preserve_field_info(field, CORE_FIELD_EXISTS)
#define core_type_exists(type) \
	__builtin_preserve_type_info(*(typeof(type) *)0, CORE_TYPE_EXISTS)
#define core_type_id(type) \
	__builtin_btf_type_id(*(typeof(type) *)0, CORE_TYPE_ID_TARGET)
/* Value of an unsigned bit-field of at most 32 bits, read as the aligned word that holds it. */
#define core_bitfield(pointer, field)                                                          \
	({                                                                                     \
		u64 word_ = *(const u32 *)((const u8 *)(pointer) +                             \
			__builtin_preserve_field_info((pointer)->field, CORE_FIELD_BYTE_OFFSET)); \
		word_ <<= __builtin_preserve_field_info((pointer)->field, CORE_FIELD_LSHIFT_U64); \
		word_ >> __builtin_preserve_field_info((pointer)->field, CORE_FIELD_RSHIFT_U64);  \
	})
#define core_offset(type, field) \
	__builtin_preserve_field_info(((type *)0)->field, CORE_FIELD_BYTE_OFFSET)
#define ksym_exists(symbol) (!!(symbol))

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0, /* bpf_map_update_elem: create or replace */
	BPF_F_NO_PREALLOC = 1U << 0,
};

struct bpf_sysctl;
struct path;
struct seq_file;
struct task_struct;

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value,
					 u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*const bpf_get_current_uid_gid)(void) = (void *)15;
static long (*const bpf_get_current_comm)(void *buf, u32 size) = (void *)16;
static u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;
static long (*const bpf_sysctl_get_name)(struct bpf_sysctl *ctx, char *buf, u64 size,
					 u64 flags) = (void *)101;
static u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*const bpf_seq_printf)(struct seq_file *seq, const char *fmt, u32 fmt_size,
				    const void *data, u32 data_len) = (void *)126;
static void *(*const bpf_ringbuf_reserve)(void *ringbuf, u64 size, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static long (*const bpf_d_path)(const struct path *path, char *buf, u32 size) = (void *)147;
static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;
static long (*const bpf_for_each_map_elem)(void *map, void *callback, void *context,
					   u64 flags) = (void *)164;
static long (*const bpf_find_vma)(struct task_struct *task, u64 address, void *callback,
				  void *context, u64 flags) = (void *)180;
static long (*const bpf_loop)(u32 count, void *callback, void *context, u64 flags) = (void *)181;
static long (*const bpf_get_func_arg)(void *ctx, u32 n, u64 *value) = (void *)183;

/* 6.2+: reinterprets any address as a pointer to the type with this BTF id. Loads through the
 * result are ordinary load instructions with an exception table entry (a fault reads as zero), so
 * they are allowed where lockdown=confidentiality forbids the bpf_probe_read helpers. */
extern void *bpf_rdonly_cast(const void *obj, u32 btf_id) __ksym;
#define cast_to(address, type) ((type *)bpf_rdonly_cast((const void *)(address), core_type_id(type)))

#define seq_print(seq, format, ...)                                                          \
	do {                                                                                 \
		static const char format_[] = format;                                        \
		u64 args_[] = {__VA_ARGS__};                                                 \
		bpf_seq_printf(seq, format_, sizeof(format_), args_, sizeof(args_));         \
	} while (0)

#endif
