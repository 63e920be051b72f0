/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Files and directories of a guarded filesystem. The inode hooks are asked whoever comes: by path,
 * by fd of a directory, through another mount, io_uring, or an overlay above.
 */
#ifndef BPF_PINS_FILES_H
#define BPF_PINS_FILES_H

#include "judge.h"

ARMED_HOOK("lsm/inode_unlink", pins_unlink, decide_entry(PINS_OP_UNLINK, ctx[0], ctx[1]))

static __always_inline bool is_directory(u64 dentry)
{
	u64 inode = (u64)DENTRY(dentry)->d_inode;

	return inode && (cast_to(inode, struct inode)->i_mode & S_IFMT) == S_IFDIR;
}

/* A directory that has gone takes with it what is mounted on it in other mount namespaces
 * (detach_mounts), and where it is only renamed, its path changes there. */
static __always_inline int decide_mount_point(u32 operation, u64 directory, u64 dentry)
{
	struct request request = {.operation = operation};
	u32 reason;

	if (!is_directory(dentry))
		return 0;
	reason = ask(ASK_WAY, 0, dentry);
	if (!reason)
		return 0;
	note_filesystem(&request, cast_to(directory, struct inode)->i_sb);
	return decide(&request, reason, name_of(dentry));
}

SEC("lsm/inode_rmdir")
int pins_rmdir(u64 *ctx)
{
	int answer;

	if (!armed)
		return 0;
	answer = decide_entry(PINS_OP_RMDIR, ctx[0], ctx[1]);
	return answer ?: decide_mount_point(PINS_OP_RMDIR, ctx[0], ctx[1]);
}

SEC("lsm/inode_rename")
int pins_rename(u64 *ctx)
{
	int answer;

	if (!armed)
		return 0;
	/* Both names are on one filesystem. */
	answer = decide_entry(PINS_OP_RENAME, ctx[0], ctx[1]);
	if (!answer)
		answer = decide_mount_point(PINS_OP_RENAME, ctx[0], ctx[1]);
	return answer ?: decide_mount_point(PINS_OP_RENAME, ctx[2], ctx[3]);
}

/* BPF_OBJ_PIN. */
ARMED_HOOK("lsm/inode_create", pins_create, decide_entry(PINS_OP_CREATE, ctx[0], ctx[1]))
ARMED_HOOK("lsm/inode_mkdir", pins_mkdir, decide_entry(PINS_OP_CREATE, ctx[0], ctx[1]))
ARMED_HOOK("lsm/inode_mknod", pins_mknod, decide_entry(PINS_OP_CREATE, ctx[0], ctx[1]))
ARMED_HOOK("lsm/inode_symlink", pins_symlink, decide_entry(PINS_OP_CREATE, ctx[0], ctx[1]))
ARMED_HOOK("lsm/inode_link", pins_link, decide_entry(PINS_OP_CREATE, ctx[1], ctx[2]))

static __always_inline int decide_attributes(u64 dentry)
{
	return decide_inode(PINS_OP_ATTRIBUTES, (u64)DENTRY(dentry)->d_sb,
			    (u64)DENTRY(dentry)->d_inode, name_of(dentry));
}

/* The mode says what is public (below), so it is the owner's to set. */
ARMED_HOOK("lsm/inode_setattr", pins_setattr, decide_attributes(ctx[1]))
ARMED_HOOK("lsm/inode_setxattr", pins_setxattr, decide_attributes(ctx[1]))
ARMED_HOOK("lsm/inode_removexattr", pins_removexattr, decide_attributes(ctx[1]))

/* open(2) and BPF_OBJ_GET of a pin. What the owner has made readable by all is public: it may be
 * opened for reading, which for a pinned iterator runs it. BPF_OBJ_GET asks here without MAY_OPEN and
 * is refused even then, read-only or not. */
static __always_inline int decide_permission(u64 *ctx)
{
	const struct inode *inode = cast_to(ctx[0], struct inode);
	u32 mask = (u32)ctx[1];
	u16 mode = inode->i_mode;

	/* Directories may be searched and listed. First, because each directory of each path that
	 * anybody looks up is asked about. */
	if ((mode & S_IFMT) != S_IFREG)
		return 0;
	if ((mode & S_IROTH) && (mask & (MAY_OPEN | MAY_ACCESS)) &&
	    !(mask & (MAY_WRITE | MAY_APPEND)))
		return 0;
	return decide_inode(PINS_OP_OPEN, (u64)inode->i_sb, ctx[0], 0);
}

ARMED_HOOK("lsm/inode_permission", pins_permission, decide_permission(ctx))

#endif
