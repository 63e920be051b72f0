/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers, state and maps of userns. */
#ifndef BPF_USERNS_STATE_H
#define BPF_USERNS_STATE_H

#include "../include/bpf.h"
#include "../include/userns.h"
#include "kernel.h"

enum {
	EPERM = 1,
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
	RENAME_WHITEOUT = 1 << 2,
	O_TMPFILE_BIT = 020000000, /* __O_TMPFILE on x86-64 and aarch64 */
};

#define OVERLAYFS_MAGIC 0x794c7630
#define MQUEUE_MAGIC 0x19800202
#define INIT_USER_NAMESPACE 0xEFFFFFFDU /* PROC_USER_INIT_INO */

/* 0: every hook allows. 1: the policy is in force. */
volatile u32 armed;
/* 1: what would be denied is reported and allowed. */
volatile u32 audit;
/* Records that found no room in a ring buffer. */
volatile u64 events_lost;
volatile u64 teardown_lost;
volatile u64 denied[USERNS_OP_COUNT];
volatile u64 audited[USERNS_OP_COUNT];

#define __array(name, value) typeof(value) *name[]

/* Unique mount ids on which members of one namespace may create inodes; the value means nothing. */
struct mounts {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, USERNS_MAX_MOUNTS);
	__type(key, u64);
	__type(value, u32);
};

/* Managed namespaces by inode number. User space makes and removes the inner maps. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, USERNS_MAX_NAMESPACES);
	__type(key, u32);
	__type(value, u32);
	__array(values, struct mounts);
} userns_mounts SEC(".maps");

/* Namespaces whose members may not call setgroups, by inode number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, USERNS_MAX_NAMESPACES);
	__type(key, u32);
	__type(value, u32);
} userns_groups SEC(".maps");

/* u32: the inode number of a managed namespace that has ended. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, USERNS_TEARDOWN_SIZE);
} userns_ended SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, USERNS_EVENTS_SIZE);
} userns_events SEC(".maps");

#endif
