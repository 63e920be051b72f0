/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Nobody but the owner gets at the policy's own objects: common/guard.h, hook by hook. */
#ifndef BPF_USERNS_GUARD_H
#define BPF_USERNS_GUARD_H

#include "state.h"

static __always_inline bool may_administrate(const struct task_struct *task)
{
	const struct cred *cred = task->cred;

	return administrators && cred->user_ns->ns.inum == INIT_USER_NAMESPACE &&
	       cred->cap_effective.val & 1ULL << CAP_SYS_ADMIN;
}
#define is_administrator(task) may_administrate(task)
#include "../common/guard.h"

/* Inner maps come and go, so they are known by their name, which user space gives to no other. A map
 * of somebody else that has this name is refused to him; that is all it does. */
static __always_inline bool is_inner(u64 map)
{
	static const char wanted[] = "userns_allowed";
	const char *name = cast_to(map, struct bpf_map)->name;

#pragma clang loop unroll(full)
	for (u32 i = 0; i < sizeof(wanted); i++)
		if (name[i] != wanted[i])
			return false;
	return true;
}

SEC("lsm/bpf_map")
int userns_guard_map(u64 *ctx)
{
	if (armed && is_inner(ctx[0]))
		return guard(OP_BPF_MAP, REASON_GUARD_MAP, cast_to(ctx[0], struct bpf_map)->id);
	return guard_map(ctx);
}

SEC("lsm/bpf_prog")
int userns_guard_program(u64 *ctx)
{
	return guard_program(ctx);
}

SEC("lsm/bpf")
int userns_guard_link(u64 *ctx)
{
	return guard_link(ctx);
}

SEC("lsm/ptrace_access_check")
int userns_ptrace(u64 *ctx)
{
	return guard_ptrace(ctx, 0);
}

SEC("lsm/ptrace_traceme")
int userns_traceme(u64 *ctx)
{
	return guard_traceme(ctx, 0);
}

#endif
