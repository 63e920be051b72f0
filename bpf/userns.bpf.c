/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * userns: the members of a delegated user namespace leave no inode behind.
 *
 * The ids of such a namespace are given to another one later, so nothing that lasts may belong to
 * them. User space lists namespaces by inode number, each with the mounts on which its members may
 * create inodes. On filesystems that the namespace, or one below it, has mounted itself they may
 * always: these end with the namespace.
 *
 * There is no hook "an inode is created on this mount": the path hooks know the mount but do not
 * cover O_TMPFILE, message queues and what overlayfs does to its upper layer, so these have hooks
 * of their own.
 *
 * No bpf_probe_read helper is used: members are read by direct loads through untrusted pointers,
 * where a bad address reads as zero. Zero is no namespace, which is refused.
 */
#include "include/bpf.h"
#include "include/userns.h"

#include "userns/kernel.h"
#include "userns/state.h"
#include "userns/judge.h"
#include "userns/report.h"

LICENSE("Dual BSD/GPL");

static __always_inline long judge_path(enum userns_operation operation, u64 address, u64 dentry)
{
	const struct path *path = cast_to(address, struct path);
	const struct super_block *sb = path->mnt->mnt_sb;
	struct request request = {.operation = operation};
	enum userns_reason reason;

	request.mount = cast_to((u64)path->mnt - core_offset(struct mount, mnt), struct mount)
				->mnt_id_unique;
	reason = judge(&request, sb);
	if (reason == USERNS_REASON_NONE)
		return 0;
	request.name = (u64)(dentry ? cast_to(dentry, struct dentry) : path->dentry)->d_name.name;
	return refuse(&request, reason, sb);
}

SEC("lsm/path_chown")
long userns_chown(u64 *ctx)
{
	return armed ? judge_path(USERNS_OP_CHOWN, ctx[0], 0) : 0;
}

SEC("lsm/path_mkdir")
long userns_mkdir(u64 *ctx)
{
	return armed ? judge_path(USERNS_OP_MKDIR, ctx[0], ctx[1]) : 0;
}

/* Also called for open(O_CREAT), for the socket file of bind() and for BPF_OBJ_PIN. */
SEC("lsm/path_mknod")
long userns_mknod(u64 *ctx)
{
	return armed ? judge_path(USERNS_OP_MKNOD, ctx[0], ctx[1]) : 0;
}

SEC("lsm/path_symlink")
long userns_symlink(u64 *ctx)
{
	return armed ? judge_path(USERNS_OP_SYMLINK, ctx[0], ctx[1]) : 0;
}

SEC("lsm/path_link")
long userns_link(u64 *ctx)
{
	return armed ? judge_path(USERNS_OP_LINK, ctx[1], ctx[2]) : 0;
}

/* A rename makes no inode, unless it leaves a whiteout behind, which since 5.8 (a3c751a50fe6)
 * anybody may ask for. */
SEC("lsm/path_rename")
long userns_rename(u64 *ctx)
{
	if (!armed || !(ctx[4] & RENAME_WHITEOUT))
		return 0;
	return judge_path(USERNS_OP_WHITEOUT, ctx[0], ctx[1]);
}

/* O_TMPFILE asks no path hook. The file has no name, but whoever gets its fd may give it one. */
SEC("lsm/file_open")
long userns_open(u64 *ctx)
{
	const struct file *file = cast_to(ctx[0], struct file);

	if (!armed || !(file->f_flags & O_TMPFILE_BIT))
		return 0;
	return judge_path(USERNS_OP_TMPFILE, (u64)&file->f_path, 0);
}

/* mq_open() asks no path hook. A message queue lives as long as its IPC namespace, which may be
 * the initial one. Everything else comes through the path hooks, which know the mount. */
SEC("lsm/inode_create")
long userns_create_queue(u64 *ctx)
{
	const struct super_block *sb = cast_to(ctx[0], struct inode)->i_sb;
	struct request request = {.operation = USERNS_OP_MQUEUE};
	enum userns_reason reason;

	if (!armed || sb->s_magic != MQUEUE_MAGIC)
		return 0;
	reason = judge(&request, sb);
	if (reason == USERNS_REASON_NONE)
		return 0;
	request.name = (u64)cast_to(ctx[1], struct dentry)->d_name.name;
	return refuse(&request, reason, sb);
}

/* mount(2) and fsconfig(FSCONFIG_CMD_CREATE). */
SEC("lsm/sb_kern_mount")
long userns_mount(u64 *ctx)
{
	const struct super_block *sb = cast_to(ctx[0], struct super_block);
	struct request request = {.operation = USERNS_OP_OVERLAY};
	enum userns_reason reason;

	if (!armed || sb->s_magic != OVERLAYFS_MAGIC)
		return 0;
	reason = judge_overlay(&request, sb);
	return reason == USERNS_REASON_NONE ? 0 : refuse(&request, reason, sb);
}

/* Dropping a group may give access that the group was meant to take away; listed namespaces, and
 * those below them, may not. */
SEC("lsm/task_fix_setgroups")
long userns_setgroups(u64 *ctx __attribute__((unused)))
{
	struct request request = {.operation = USERNS_OP_SETGROUPS};
	const struct user_namespace *ns;
	u32 inode;

	if (!armed)
		return 0;
	ns = own_namespace();
	for (u32 level = 0; level < USERNS_MAX_LEVELS; level++) {
		inode = ns->ns.inum;
		if (!inode)
			break;
		if (bpf_map_lookup_elem(&userns_groups, &inode)) {
			request.managed = inode;
			return refuse(&request, USERNS_REASON_SETGROUPS, NULL);
		}
		if (inode == INIT_USER_NAMESPACE)
			return 0;
		ns = ns->parent;
	}
	return refuse(&request, USERNS_REASON_TOO_DEEP, NULL);
}

/* The last step of every user namespace's end in which its inode number is still taken
 * (free_user_ns, which calls this for each parent that ends with it). A program cannot delete
 * from a map of maps, so user space is told. Works armed or not: what is listed must go. */
SEC("fentry/retire_userns_sysctls")
long userns_ended_probe(u64 *ctx)
{
	u32 inode = cast_to(ctx[0], struct user_namespace)->ns.inum;
	u32 *record;

	if (!bpf_map_lookup_elem(&userns_mounts, &inode) &&
	    !bpf_map_lookup_elem(&userns_groups, &inode))
		return 0;
	record = bpf_ringbuf_reserve(&userns_ended, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&teardown_lost, 1);
		return 0;
	}
	*record = inode;
	bpf_ringbuf_submit(record, 0);
	return 0;
}
