/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Nobody but the owner gets at the policy's own objects: common/guard.h, hook by hook. */
#ifndef BPF_FSACCESS_GUARD_H
#define BPF_FSACCESS_GUARD_H

#include "state.h"
#ifdef FSACCESS_CGROUP
volatile u32 guard_births; /* always 0; user space finds the same globals in both objects */
#else
#include "../common/births.h"
#endif
#include "../common/guard.h"

ARMED_HOOK(LSM "bpf_map", fsaccess_guard_map, guard_map(ctx))
ARMED_HOOK(LSM "bpf_prog", fsaccess_guard_program, guard_program(ctx))
ARMED_HOOK(LSM "bpf", fsaccess_guard_link, guard_link(ctx))

/* Without an owner nobody is to be kept from it, and there is no next generation. */
#ifndef FSACCESS_CGROUP
SEC("lsm/bpf_map_create")
int fsaccess_birth_map(u64 *ctx)
{
	return guard_map_birth(ctx);
}

SEC("lsm/bpf_prog_load")
int fsaccess_birth_program(u64 *ctx)
{
	return guard_program_birth(ctx);
}

ARMED_HOOK("lsm/ptrace_access_check", fsaccess_ptrace,
	   guard_ptrace(ctx, deny_ptrace ? FSACCESS_REASON_PTRACE : 0))
ARMED_HOOK("lsm/ptrace_traceme", fsaccess_traceme,
	   guard_traceme(ctx, deny_ptrace ? FSACCESS_REASON_PTRACE : 0))

/* A keeper does nothing but hold the links: whoever ends it ends the policy. (An owner that is not a
 * keeper is ended by signals on purpose. The kernel's own signals, cgroup.kill among them, do not
 * ask this hook.) */
static __always_inline int guard_signal(u64 *ctx)
{
	const struct task_struct *target = cast_to(ctx[0], struct task_struct);
	u32 signal = (u32)ctx[2];
	struct request request = {.operation = FSACCESS_OP_SIGNAL, .prot = signal};

	if (kept != POLICY_KEPT_BY_KEEPER || !signal || !is_owner(target))
		return 0;
	request.object = (u32)target->tgid;
	if (bpf_get_current_task_btf()->tgid == target->tgid)
		return 0;
	return conclude(&request, FSACCESS_REASON_SIGNAL_OWNER, false, NULL, 0);
}

ARMED_HOOK("lsm/task_kill", fsaccess_guard_signal, guard_signal(ctx))

#endif

#endif
