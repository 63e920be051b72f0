/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers, settings, state and maps of fsaccess. */
#ifndef BPF_FSACCESS_STATE_H
#define BPF_FSACCESS_STATE_H

#include "../include/bpf.h"
#include "../include/fsaccess.h"
#include "../include/kernel.h"

/* The ownerless object (fsaccess_cgroup.bpf.c) attaches the same hooks to the root cgroup: other
 * sections, nothing that sleeps, and 1 is the answer that allows. */
#ifdef FSACCESS_CGROUP
#define LSM "lsm_cgroup/"
#define LSM_SLEEPABLE "lsm_cgroup/"
#define ANSWER(value) ((value) == 0)
#else
#define LSM "lsm/"
#define LSM_SLEEPABLE "lsm.s/"
#define ANSWER(value) (value)
#endif

#define THIS_POLICY POLICY_FSACCESS
#define OWN(name) FSACCESS_##name
#include "../common/state.h"

enum {
	PROT_WRITE = 0x2,
	PROT_EXEC = 0x4,
	VM_EXEC = 0x4,
};

/* ---- Settings, fixed when the object is loaded (.rodata) ---- */

/* Filesystem types whose files can be trusted; 0 is an empty entry. A filesystem
 * belongs here only if what it serves comes from its block device alone. fuse and btrfs do not
 * (daemon; several devices) and are refused even if listed. */
const volatile u32 filesystem_magics[FSACCESS_MAX_FILESYSTEMS] = {EROFS_MAGIC, SQUASHFS_MAGIC};

/* 1: nobody attaches to any other process (ends debuggers; a traced process' code can be
 * rewritten). 0: only the owner is protected. */
const volatile u32 deny_ptrace = 0;

/* ---- State, written by the owner (.bss); common/state.h has the rest ---- */

/* s_dev of the initramfs while its files are trusted, else 0. */
volatile u32 initramfs_dev;

/* ---- Maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, FSACCESS_MAX_DEVICES);
	__type(key, u32);
	__type(value, struct fsaccess_device);
} verity_devices SEC(".maps");

#endif
