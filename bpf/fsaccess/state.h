/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers, settings, state and maps of fsaccess. */
#ifndef BPF_FSACCESS_STATE_H
#define BPF_FSACCESS_STATE_H

#include "../include/bpf.h"
#include "../include/fsaccess.h"
#include "../include/kernel.h"

enum {
	EPERM = 1,

	PROT_WRITE = 0x2,
	PROT_EXEC = 0x4,
	VM_EXEC = 0x4,

	S_IFMT = 0170000,
	S_IFREG = 0100000,

	PTRACE_MODE_ATTACH = 0x02, /* include/linux/ptrace.h */
	BPF_LINK_GET_FD_BY_ID = 30, /* enum bpf_cmd */
	BPF_COMMAND = 0xffff,       /* the bits of a command that are not flags */

	/* /proc/PID/stat counts a process' start in these (USER_HZ is 100 wherever BPF runs). */
	NS_PER_CLOCK_TICK = 10000000,
};

/* Superblock magic numbers (include/uapi/linux/magic.h and the filesystems' own sources). */
#define RAMFS_MAGIC 0x858458f6
#define TMPFS_MAGIC 0x01021994
#define OVERLAYFS_MAGIC 0x794c7630
#define FUSE_MAGIC 0x65735546
#define BTRFS_MAGIC 0x9123683e
#define EROFS_MAGIC 0xe0f5e1e2
#define SQUASHFS_MAGIC 0x73717368

/* ---- Settings, fixed when the object is loaded (.rodata) ---- */

/* Filesystem types whose files can be trusted; 0 is an empty entry. A filesystem
 * belongs here only if what it serves comes from its block device alone. fuse and btrfs do not
 * (daemon; several devices) and are refused even if listed. */
const volatile u32 filesystem_magics[FSACCESS_MAX_FILESYSTEMS] = {EROFS_MAGIC, SQUASHFS_MAGIC};

/* 1: nobody attaches to any other process (ends debuggers; a traced process' code can be
 * rewritten). 0: only the owner is protected. */
const volatile u32 deny_ptrace = 0;

/* ---- State, written by the owner (.bss) ---- */

/* 0: every hook allows (devices are recorded nevertheless). 1: the policy is in force. */
volatile u32 armed;
/* 1: what the policy on code would deny is reported and allowed. The guard is not softened. */
volatile u32 audit;
/* s_dev of the initramfs while its files are trusted, else 0. */
volatile u32 initramfs_dev;
/* The process that may have fds to the objects below: tgid in the initial pid namespace, and unless
 * it is 1 its start time in clock ticks since boot (field 22 of /proc/PID/stat), because a tgid is
 * reused. tgid 0: nobody. */
volatile u32 owner_tgid;
volatile u64 owner_start_ticks;
/* Ids the kernel gave to our maps, programs and links; 0 is an empty entry. */
volatile u32 guard_map_ids[FSACCESS_MAX_MAPS];
volatile u32 guard_program_ids[FSACCESS_MAX_PROGRAMS];
volatile u32 guard_link_ids[FSACCESS_MAX_LINKS];

/* ---- Maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, FSACCESS_MAX_DEVICES);
	__type(key, u32);
	__type(value, struct fsaccess_device);
} verity_devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FSACCESS_OP_COUNT);
	__type(key, u32);
	__type(value, struct fsaccess_counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FSACCESS_EVENTS_SIZE);
} events SEC(".maps");

#endif
