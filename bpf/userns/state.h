/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers, settings, state and maps of userns. */
#ifndef BPF_USERNS_STATE_H
#define BPF_USERNS_STATE_H

#include "../include/bpf.h"
#include "../include/userns.h"
#include "kernel.h"

#define THIS_POLICY POLICY_USERNS
#define OWN(name) USERNS_##name
#include "../common/state.h"

enum {
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
	RENAME_WHITEOUT = 1 << 2,
	O_TMPFILE_BIT = 020000000, /* __O_TMPFILE on x86-64 and aarch64 */
	CAP_SYS_ADMIN = 21,
	SB_NOUSER = 31, /* bit of s_flags: user space cannot mount it (include/linux/fs.h) */

	/* include/uapi/linux/posix_acl.h */
	ACL_USER = 0x02,
	ACL_GROUP = 0x08,
	ACL_MOST = 1 << 13, /* entries in an xattr of 64 KiB */

	/* struct vfs_ns_cap_data (include/uapi/linux/capability.h) */
	CAPABILITY_SIZE = 24,
	CAPABILITY_LAST = 16, /* the last word; its upper half is the root's id */

	EXTENTS_IN_PLACE = 5, /* UID_GID_MAP_MAX_BASE_EXTENTS */

	/* include/uapi/linux/btrfs.h: type and numbers of the ioctls that make a directory */
	BTRFS_IOCTL = 0x94,
	BTRFS_SNAP_CREATE = 1,
	BTRFS_SUBVOL_CREATE = 14,
	BTRFS_SNAP_CREATE_V2 = 23,
	BTRFS_SUBVOL_CREATE_V2 = 24,
};

#define INIT_USER_NAMESPACE 0xEFFFFFFDU /* PROC_USER_INIT_INO */

/* Levels of namespaces that are looked at; more than USERNS_MAX_LEVELS mean nothing. */
const volatile u32 max_levels = USERNS_MAX_LEVELS;

/* 1: whoever has CAP_SYS_ADMIN in the initial user namespace passes the guard as the owner does:
 * with pins the policy is administered by one process after the other. */
volatile u32 administrators;
/* Ends of namespaces that found no room in the ring buffer. */
volatile u64 teardown_lost;

#define __array(name, value) typeof(value) *name[]

/* Unique mount ids on which members of one namespace may create inodes; the value means nothing.
 * Inner maps may be smaller and grow by being replaced: the kernel does not compare max_entries. */
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

#endif
