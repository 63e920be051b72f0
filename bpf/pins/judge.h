/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is guarded, and the one way from a reason to an answer. */
#ifndef BPF_PINS_JUDGE_H
#define BPF_PINS_JUDGE_H

#include "state.h"
#include "../common/guard.h"

/* The number of the guarded filesystem, from 1; 0: it is none. The address alone would do while
 * pins_gone() sees every end; the other two make sure. */
static __always_inline u32 which_filesystem(u64 superblock)
{
#pragma clang loop unroll(full)
	for (u32 i = 0; i < PINS_MAX_FILESYSTEMS; i++) {
		const struct super_block *sb;

		if (!superblock || guarded[i].superblock != superblock)
			continue;
		sb = cast_to(superblock, struct super_block);
		if (sb->s_dev == guarded[i].device && sb->s_magic == guarded[i].magic)
			return i + 1;
	}
	return 0;
}

static __always_inline bool may(void)
{
	return is_owner(bpf_get_current_task_btf());
}

/* Every hook but the guard's ends here: reason 0 allows, and so does being the owner. */
static __always_inline int decide(struct request *request, u32 reason, u64 name)
{
	if (reason && may())
		reason = 0;
	return conclude(request, reason, true, NULL, name);
}

/* An act on a file or directory of `superblock`. What is on other filesystems is not counted. Not
 * inlined: what has nothing to decide should not save the registers that this needs. */
static __noinline int decide_inode(u32 operation, u64 superblock, u64 inode, u64 name)
{
	struct request request = {.operation = operation};

	if (!which_filesystem(superblock))
		return 0;
	note_filesystem(&request, cast_to(superblock, struct super_block));
	if (inode)
		request.inode = cast_to(inode, struct inode)->i_ino;
	return decide(&request, PINS_REASON_GUARDED, name);
}

static __always_inline u64 name_of(u64 dentry)
{
	return (u64)DENTRY(dentry)->d_name.name;
}

/* An act on a directory entry: the directory tells the filesystem. */
static __always_inline int decide_entry(u32 operation, u64 directory, u64 dentry)
{
	return decide_inode(operation, (u64)cast_to(directory, struct inode)->i_sb,
			    (u64)DENTRY(dentry)->d_inode, name_of(dentry));
}

/* A change of the mount tree around `mount` (its address, for the event). */
static __always_inline int decide_mount(u32 operation, u32 reason, u64 mount, u64 flags)
{
	struct request request = {.operation = operation, .flags = flags};

	note_filesystem(&request, MOUNT(mount)->mnt.mnt_sb);
	return decide(&request, reason, name_of((u64)MOUNT(mount)->mnt_mountpoint));
}

/* Our own objects are in the arrays that every policy has; others' are registered. */
static __always_inline bool is_registered(u32 kind, u32 id)
{
	u64 key = (u64)kind << 32 | id;

	if ((kind == PINS_KIND_MAP && is_listed(guard_map_ids, POLICY_MAX_MAPS, id)) ||
	    (kind == PINS_KIND_PROGRAM && is_listed(guard_program_ids, POLICY_MAX_PROGRAMS, id)) ||
	    (kind == PINS_KIND_LINK && is_listed(guard_link_ids, POLICY_MAX_LINKS, id)))
		return true;
	return id && bpf_map_lookup_elem(&pins_ids, &key);
}

#endif
