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
 * cover O_TMPFILE, message queues, btrfs subvolumes and what overlayfs does to its upper layer, so
 * these have hooks of their own; so have System V objects and the ids in ACLs and capabilities.
 *
 * No bpf_probe_read helper is used: members are read by direct loads through untrusted pointers,
 * where a bad address reads as zero. Zero is no namespace, which is refused.
 */
#include "include/bpf.h"
#include "include/kernel.h"
#include "include/userns.h"

#include "userns/state.h"
#include "userns/judge.h"
#include "userns/ids.h"
#include "userns/guard.h"
#include "userns/status.h"

LICENSE("Dual BSD/GPL");

/* Pipes, sockets and memory files end with their last fd, whoever owns them. */
SEC("lsm/path_chown")
int userns_chown(u64 *ctx)
{
	const struct super_block *sb = cast_to(ctx[0], struct path)->mnt->mnt_sb;

	if (!armed || sb->s_flags & 1ULL << SB_NOUSER)
		return 0;
	return judge_path(USERNS_OP_CHOWN, ctx[0], 0);
}

ARMED_HOOK("lsm/path_mkdir", userns_mkdir, judge_path(USERNS_OP_MKDIR, ctx[0], ctx[1]))
/* Also called for open(O_CREAT), for the socket file of bind() and for BPF_OBJ_PIN. */
ARMED_HOOK("lsm/path_mknod", userns_mknod, judge_path(USERNS_OP_MKNOD, ctx[0], ctx[1]))
ARMED_HOOK("lsm/path_symlink", userns_symlink, judge_path(USERNS_OP_SYMLINK, ctx[0], ctx[1]))
ARMED_HOOK("lsm/path_link", userns_link, judge_path(USERNS_OP_LINK, ctx[1], ctx[2]))

/* A rename makes no inode, unless it leaves a whiteout behind, which since 5.8 (a3c751a50fe6)
 * anybody may ask for. */
SEC("lsm/path_rename")
int userns_rename(u64 *ctx)
{
	if (!armed || !(ctx[4] & RENAME_WHITEOUT))
		return 0;
	return judge_path(USERNS_OP_WHITEOUT, ctx[0], ctx[1]);
}

/* O_TMPFILE asks no path hook. The file has no name, but whoever gets its fd may give it one. */
SEC("lsm/file_open")
int userns_open(u64 *ctx)
{
	const struct file *file = cast_to(ctx[0], struct file);

	if (!armed || !(file->f_flags & O_TMPFILE_BIT))
		return 0;
	return judge_path(USERNS_OP_TMPFILE, (u64)&file->f_path, 0);
}

/* btrfs makes the directory of a subvolume without a path hook, and for anybody. */
static __always_inline int judge_ioctl(u64 *ctx)
{
	const struct file *file = cast_to(ctx[0], struct file);
	u32 type = (ctx[1] >> 8) & 0xff, number = ctx[1] & 0xff;

	if (type != BTRFS_IOCTL)
		return 0;
	if (number != BTRFS_SNAP_CREATE && number != BTRFS_SNAP_CREATE_V2 &&
	    number != BTRFS_SUBVOL_CREATE && number != BTRFS_SUBVOL_CREATE_V2)
		return 0;
	if (file->f_inode->i_sb->s_magic != BTRFS_MAGIC)
		return 0;
	return judge_path(USERNS_OP_SUBVOLUME, (u64)&file->f_path, 0);
}

ARMED_HOOK("lsm/file_ioctl", userns_ioctl, judge_ioctl(ctx))
/* A 32-bit system call (int 0x80 in a 64-bit program too) comes this way. */
ARMED_HOOK("lsm/file_ioctl_compat", userns_ioctl_compat, judge_ioctl(ctx))

/* mq_open() asks no path hook. A message queue lives as long as its IPC namespace, which may be
 * the initial one. Everything else comes through the path hooks, which know the mount. */
SEC("lsm/inode_create")
int userns_create_queue(u64 *ctx)
{
	const struct super_block *sb = cast_to(ctx[0], struct inode)->i_sb;
	struct question question = {.request.operation = USERNS_OP_MQUEUE};
	u32 reason;

	if (!armed || sb->s_magic != MQUEUE_MAGIC)
		return 0;
	reason = judge_filesystem(&question, sb);
	return answer(&question, reason, (u64)cast_to(ctx[1], struct dentry)->d_name.name);
}

/* System V objects have an owner too, and stay until they are removed or the IPC namespace ends. */
static __always_inline int judge_ipc(void)
{
	const struct task_struct *task = cast_to(bpf_get_current_task_btf(), struct task_struct);
	struct question question = {.request.operation = USERNS_OP_IPC};
	u32 reason;

	reason = judge(&question, task->nsproxy->ipc_ns->user_ns, 0);
	return answer(&question, reason == USERNS_REASON_MOUNT ? USERNS_REASON_IPC : reason, 0);
}

ARMED_HOOK("lsm/shm_alloc_security", userns_shm, judge_ipc())
ARMED_HOOK("lsm/msg_queue_alloc_security", userns_msg, judge_ipc())
ARMED_HOOK("lsm/sem_alloc_security", userns_sem, judge_ipc())

/* An entry that names an id of the namespace's grants access to whoever gets that id next. */
SEC("lsm/inode_set_acl")
int userns_acl(u64 *ctx)
{
	const struct dentry *dentry = cast_to(ctx[1], struct dentry);
	struct question question = {.request.operation = USERNS_OP_ACL};
	u32 reason;

	if (!armed)
		return 0;
	reason = judge_filesystem(&question, dentry->d_sb);
	if (reason == USERNS_REASON_MOUNT)
		reason = names_given_ids(ctx[3], question.managed) ? USERNS_REASON_IDS
								    : USERNS_REASON_NONE;
	return answer(&question, reason, (u64)dentry->d_name.name);
}

/* File capabilities are in force in the namespaces whose root the file names. */
SEC("lsm/inode_setxattr")
int userns_capability(u64 *ctx)
{
	const struct dentry *dentry = cast_to(ctx[1], struct dentry);
	struct question question = {.request.operation = USERNS_OP_CAPABILITY};
	u64 name, value, map;
	u32 reason;

	if (!armed || ctx[4] != CAPABILITY_SIZE)
		return 0;
	/* Before 6.16 the verifier refuses plain loads of `const void *` arguments. */
	if (bpf_get_func_arg(ctx, 2, &name) || bpf_get_func_arg(ctx, 3, &value) ||
	    !is_capability(name))
		return 0;
	reason = judge_filesystem(&question, dentry->d_sb);
	if (reason == USERNS_REASON_MOUNT) {
		map = question.managed + core_offset(struct user_namespace, uid_map);
		reason = is_given(map, read_word(value + CAPABILITY_LAST) >> 32)
				 ? USERNS_REASON_IDS
				 : USERNS_REASON_NONE;
	}
	return answer(&question, reason, (u64)dentry->d_name.name);
}

/* mount(2) and fsconfig(FSCONFIG_CMD_CREATE). */
SEC("lsm/sb_kern_mount")
int userns_mount(u64 *ctx)
{
	const struct super_block *sb = cast_to(ctx[0], struct super_block);
	struct question question = {.request.operation = USERNS_OP_OVERLAY};

	if (!armed || sb->s_magic != OVERLAYFS_MAGIC)
		return 0;
	return answer(&question, judge_overlay(&question, sb), 0);
}

/* Dropping a group may give access that the group was meant to take away; listed namespaces, and
 * those below them, may not. */
SEC("lsm/task_fix_setgroups")
int userns_setgroups(u64 *ctx __attribute__((unused)))
{
	struct question question = {.request.operation = USERNS_OP_SETGROUPS};
	struct listed listed;
	u32 reason;

	if (!armed)
		return 0;
	reason = find_listed(&userns_groups, &question, &listed);
	if (listed.value)
		reason = USERNS_REASON_SETGROUPS;
	return answer(&question, reason, 0);
}

/* The last step of every user namespace's end in which its inode number is still taken
 * (free_user_ns, which calls this for each parent that ends with it). A program cannot delete
 * from a map of maps, so user space is told. Works armed or not: what is listed must go. */
SEC("fentry/retire_userns_sysctls")
int userns_ended_probe(u64 *ctx)
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
