/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one decision: may a member of this namespace leave an inode there? */
#ifndef BPF_USERNS_JUDGE_H
#define BPF_USERNS_JUDGE_H

#include "state.h"
#include "../common/report.h"

/* What is asked, and what was found out on the way. */
struct question {
	struct request request;
	u64 managed; /* address of the nearest managed namespace; 0: none */
};

/* The words of struct request that mean something else here (include/userns.h). */
#define own_inode prot
#define mount_id flags
#define managed_inode object

static __always_inline const struct user_namespace *own_namespace(void)
{
	return cast_to(bpf_get_current_task_btf(), struct task_struct)->cred->user_ns;
}

/* Does `ns` lie in `above`, or is it the same? */
static __always_inline bool is_at_or_below(const struct user_namespace *ns, u64 above)
{
	for (u32 level = 0; level < USERNS_MAX_LEVELS; level++) {
		if ((u64)ns == above)
			return true;
		if (!ns)
			return false;
		ns = ns->parent;
	}
	return false;
}

struct listed {
	const struct user_namespace *ns;
	void *value; /* NULL: none is listed, and the return value says what that means */
};

/* The nearest namespace at or above the caller's that `map` lists, so that unshare() does not lead
 * out of it. A pointer that cannot be read gives inode 0, which is no namespace: refused. */
static __always_inline u32 find_listed(void *map, struct question *question, struct listed *listed)
{
	const struct user_namespace *ns = own_namespace();

	listed->value = NULL;
	question->request.own_inode = ns->ns.inum;
	for (u32 level = 0; level < USERNS_MAX_LEVELS && level < max_levels; level++) {
		u32 inode = ns->ns.inum;

		if (!inode)
			break;
		listed->value = bpf_map_lookup_elem(map, &inode);
		if (listed->value) {
			listed->ns = ns;
			question->request.managed_inode = inode;
			return USERNS_REASON_NONE;
		}
		if (inode == INIT_USER_NAMESPACE)
			return USERNS_REASON_NONE;
		ns = ns->parent;
	}
	return USERNS_REASON_TOO_DEEP;
}

/* `owner` is the namespace to which what is about to be changed belongs, `mount` its unique mount id
 * or 0. */
static __always_inline u32 judge(struct question *question, const struct user_namespace *owner,
				 u64 mount)
{
	struct listed listed;
	u32 reason = find_listed(&userns_mounts, question, &listed);

	question->request.mount_id = mount;
	question->managed = listed.value ? (u64)listed.ns : 0;
	if (!listed.value)
		return reason;
	if (owner && is_at_or_below(owner, (u64)listed.ns))
		return USERNS_REASON_NONE;
	if (mount && bpf_map_lookup_elem(listed.value, &mount))
		return USERNS_REASON_NONE;
	return USERNS_REASON_MOUNT;
}

/* Answers; the counters are about managed namespaces only. */
static __always_inline int answer(struct question *question, u32 reason, u64 name)
{
	if (reason == USERNS_REASON_NONE && !question->managed)
		return 0;
	return conclude(&question->request, reason, true, NULL, name);
}

/* Not inlined: an open or ioctl that has nothing to be judged should not save the registers that
 * this needs. */
static __noinline int judge_path(enum userns_operation operation, u64 address, u64 dentry)
{
	const struct path *path = cast_to(address, struct path);
	const struct super_block *sb = path->mnt->mnt_sb;
	struct question question = {.request.operation = operation};
	u64 mount;
	u32 reason;

	mount = cast_to((u64)path->mnt - core_offset(struct mount, mnt), struct mount)->mnt_id_unique;
	reason = judge(&question, sb->s_user_ns, mount);
	note_filesystem(&question.request, sb);
	return answer(&question, reason,
		      (u64)(dentry ? cast_to(dentry, struct dentry) : path->dentry)->d_name.name);
}

/* Where no hook tells the mount: only filesystems of the namespace's own will do. */
static __always_inline u32 judge_filesystem(struct question *question, const struct super_block *sb)
{
	u32 reason = judge(question, sb->s_user_ns, 0);

	note_filesystem(&question->request, sb);
	return reason;
}

/* Overlayfs writes its upper layer with the mounter's credentials and asks no path hook again, so
 * the upper filesystem is judged once, at mount. Its mount is a private clone of the one that was
 * named, so an allow-list cannot name it: only a filesystem of the namespace's own will do. */
static __always_inline u32 judge_overlay(struct question *question, const struct super_block *sb)
{
	const struct vfsmount *upper;
	u32 reason;
	u64 layers;

	/* Asked about no filesystem of its own: is the caller managed at all? */
	reason = judge(question, NULL, 0);
	note_filesystem(&question->request, sb);
	if (reason == USERNS_REASON_NONE || reason == USERNS_REASON_TOO_DEEP)
		return reason;
	if (!core_type_exists(struct ovl_fs) || !core_type_exists(struct ovl_layer))
		return USERNS_REASON_OVERLAY;
	layers = read_word((u64)sb->s_fs_info + core_offset(struct ovl_fs, layers));
	if (!layers)
		return USERNS_REASON_OVERLAY;
	upper = cast_to(read_word(layers + core_offset(struct ovl_layer, mnt)), struct vfsmount);
	if (!upper)
		return USERNS_REASON_NONE; /* read-only */
	return is_at_or_below(upper->mnt_sb->s_user_ns, question->managed) ? USERNS_REASON_NONE
									   : USERNS_REASON_UPPER;
}

#endif
