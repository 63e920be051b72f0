/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one decision: may a member of this namespace leave an inode there? */
#ifndef BPF_USERNS_JUDGE_H
#define BPF_USERNS_JUDGE_H

#include "state.h"

/* What is asked, and what was found out on the way. */
struct request {
	enum userns_operation operation;
	u32 managed; /* inode of the nearest managed namespace */
	u64 mount;
	u64 name; /* address of the last component */
};

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

/* The nearest managed namespace at or above the caller's decides, so that unshare() does not lead
 * out of it. A pointer that cannot be read gives inode 0, which is no namespace: refused. */
static __always_inline enum userns_reason judge(struct request *request,
						const struct super_block *sb)
{
	const struct user_namespace *ns = own_namespace();
	void *mounts = NULL;
	u32 inode;

	for (u32 level = 0; level < USERNS_MAX_LEVELS; level++) {
		inode = ns->ns.inum;
		if (!inode)
			return USERNS_REASON_TOO_DEEP;
		mounts = bpf_map_lookup_elem(&userns_mounts, &inode);
		if (mounts)
			break;
		if (inode == INIT_USER_NAMESPACE)
			return USERNS_REASON_NONE;
		ns = ns->parent;
	}
	if (!mounts)
		return USERNS_REASON_TOO_DEEP;
	request->managed = inode;
	if (sb && is_at_or_below(sb->s_user_ns, (u64)ns))
		return USERNS_REASON_NONE;
	if (request->mount && bpf_map_lookup_elem(mounts, &request->mount))
		return USERNS_REASON_NONE;
	return USERNS_REASON_MOUNT;
}

/* Overlayfs writes its upper layer with the mounter's credentials and asks no path hook again, so
 * the upper filesystem is judged once, at mount. Its mount is a private clone of the one that was
 * named, so an allow-list cannot name it: only a filesystem of the namespace's own will do. */
static __always_inline enum userns_reason judge_overlay(struct request *request,
							const struct super_block *sb)
{
	const struct vfsmount *upper;
	enum userns_reason reason;
	u64 layers;

	/* Asked about no filesystem of its own: is the caller managed at all? */
	reason = judge(request, NULL);
	if (reason == USERNS_REASON_NONE || reason == USERNS_REASON_TOO_DEEP)
		return reason;
	if (!core_type_exists(struct ovl_fs) || !core_type_exists(struct ovl_layer))
		return USERNS_REASON_OVERLAY;
	layers = cast_to((u64)sb->s_fs_info + core_offset(struct ovl_fs, layers), struct timespec64)
			 ->tv_sec;
	if (!layers)
		return USERNS_REASON_OVERLAY;
	upper = cast_to(cast_to(layers + core_offset(struct ovl_layer, mnt), struct timespec64)
				->tv_sec,
			struct vfsmount);
	if (!upper)
		return USERNS_REASON_NONE; /* read-only */
	return judge(request, upper->mnt_sb) == USERNS_REASON_NONE ? USERNS_REASON_NONE
								  : USERNS_REASON_UPPER;
}

#endif
