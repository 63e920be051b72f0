/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The mount tree: nothing takes the guarded filesystem's mount away, moves or hides it. */
#ifndef BPF_PINS_MOUNTS_H
#define BPF_PINS_MOUNTS_H

#include "judge.h"

SEC("lsm/sb_umount")
int pins_umount(u64 *ctx)
{
	u32 questions = ASK_HOLDERS | ASK_SPREAD;
	u64 mount = mount_of(ctx[0]);

	if (!armed)
		return 0;
	/* The kernel takes its lock after this hook. What another thread puts below the mount until
	 * then is unmounted along with it unseen; hence `strict`. */
	if (strict && ctx[1] & MNT_DETACH)
		questions |= ASK_REACH;
	return decide_mount(PINS_OP_UMOUNT, ask(questions, mount, 0), mount, ctx[1]);
}

/* Would something mounted at this path hide the guarded filesystem, or a part of it? */
static __always_inline u32 ask_covers(u64 address)
{
	const struct path *path = cast_to(address, struct path);

	return ask(ASK_COVERS, mount_of((u64)path->mnt), (u64)path->dentry);
}

/* Is the caller where a guarded filesystem's anchor is? */
static __always_inline bool is_at_home(void)
{
	u64 here = own_mount_namespace();

#pragma clang loop unroll(full)
	for (u32 i = 0; i < PINS_MAX_FILESYSTEMS; i++)
		if (guarded[i].superblock && guarded[i].namespace == here)
			return true;
	return false;
}

/* mount(2). path_mount() decides by the flags in this order. */
SEC("lsm/sb_mount")
int pins_mount(u64 *ctx)
{
	u64 mount = mount_of((u64)cast_to(ctx[1], struct path)->mnt);
	u64 flags = ctx[3];

	if (!armed)
		return 0;
	if (flags & MS_REMOUNT) {
		/* Of the filesystem: lsm/sb_remount. Of the mount alone: read-only would stop the
		 * owner's upgrades. */
		if (flags & MS_BIND && is_anchor(mount))
			return decide_mount(PINS_OP_REMOUNT, PINS_REASON_MOUNT, mount, flags);
		return 0;
	}
	if (!(flags & MS_BIND)) {
		if (flags & MS_PROPAGATION)
			return 0; /* mount_setattr(2) does the same and has no hook */
		/* What is moved stands in a string in user space's words; only the mounts of one's
		 * own namespace can be moved. move_mount(2) has a hook that is told. */
		if (flags & MS_MOVE && is_at_home())
			return decide_mount(PINS_OP_MOVE, PINS_REASON_UNKNOWN, mount, flags);
	}
	return decide_mount(PINS_OP_MOUNT, ask_covers(ctx[1]), mount, flags);
}

/* move_mount(2): also how what fsmount(2) and open_tree(2) made is mounted. */
SEC("lsm/move_mount")
int pins_move(u64 *ctx)
{
	u64 from = mount_of((u64)cast_to(ctx[0], struct path)->mnt);
	u32 reason;

	if (!armed)
		return 0;
	reason = ask(ASK_HOLDERS, from, 0);
	if (reason)
		return decide_mount(PINS_OP_MOVE, reason, from, 0);
	return decide_mount(PINS_OP_MOUNT, ask_covers(ctx[1]), from, 0);
}

/* The root of the caller's namespace is replaced; what holds the anchor must stay. */
SEC("lsm/sb_pivotroot")
int pins_pivot(u64 *ctx)
{
	u64 root = mount_of((u64)cast_to(bpf_get_current_task_btf(), struct task_struct)
				    ->fs->root.mnt);
	u64 new = mount_of((u64)cast_to(ctx[1], struct path)->mnt);
	u32 reason;

	if (!armed)
		return 0;
	reason = ask(ASK_HOLDERS, root, 0) ?: ask(ASK_HOLDERS, new, 0);
	return decide_mount(PINS_OP_PIVOT, reason, new, 0);
}

/* mount(MS_REMOUNT) and fsconfig(FSCONFIG_CMD_RECONFIGURE): read-only would stop upgrades. */
ARMED_HOOK("lsm/sb_remount", pins_remount, decide_inode(PINS_OP_REMOUNT, ctx[0], 0, 0))

/* The end of a guarded filesystem cannot be refused, only told; its address may be given to another
 * one at once. */
SEC("lsm/sb_delete")
int pins_gone(u64 *ctx)
{
	struct request request = {.operation = PINS_OP_GONE};
	u32 number = which_filesystem(ctx[0]);

	if (!number || number > PINS_MAX_FILESYSTEMS)
		return 0;
	request.device = guarded[number - 1].device;
	request.magic = guarded[number - 1].magic;
	request.object = number;
	guarded[number - 1].superblock = 0;
	if (armed)
		conclude(&request, PINS_REASON_GONE, false, NULL, 0);
	return 0;
}

/* Not a guard: how a filesystem becomes guarded. The owner sets `learn` and calls statfs(2). */
SEC("lsm/sb_statfs")
int pins_learn(u64 *ctx)
{
	const struct super_block *sb;
	u32 number = learn;
	u64 superblock;

	if (!number || number > PINS_MAX_FILESYSTEMS || !may())
		return 0;
	superblock = (u64)DENTRY(ctx[0])->d_sb;
	sb = cast_to(superblock, struct super_block);
	if (sb->s_magic != BPF_FS_MAGIC)
		return 0;
	number--;
	guarded[number].namespace = own_mount_namespace();
	guarded[number].magic = sb->s_magic;
	guarded[number].device = sb->s_dev;
	guarded[number].superblock = superblock;
	learn = 0;
	return 0;
}

#endif
