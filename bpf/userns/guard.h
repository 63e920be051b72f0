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

ARMED_HOOK("lsm/bpf_map", userns_guard_map,
	   is_inner(ctx[0]) ? guard(OP_BPF_MAP, REASON_GUARD_MAP, cast_to(ctx[0], struct bpf_map)->id)
			    : guard_map(ctx))
ARMED_HOOK("lsm/bpf_prog", userns_guard_program, guard_program(ctx))
ARMED_HOOK("lsm/bpf", userns_guard_link, guard_link(ctx))
ARMED_HOOK("lsm/ptrace_access_check", userns_ptrace, guard_ptrace(ctx, 0))
ARMED_HOOK("lsm/ptrace_traceme", userns_traceme, guard_traceme(ctx, 0))

#endif
