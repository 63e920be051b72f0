/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Nobody but the owner gets at the policy's own objects. */
#ifndef BPF_FSACCESS_GUARD_H
#define BPF_FSACCESS_GUARD_H

#include "report.h"

static __always_inline bool is_owner(const struct task_struct *task)
{
	u32 tgid = owner_tgid;

	if (!tgid || (u32)task->tgid != tgid)
		return false;
	return tgid == 1 ||
	       task->group_leader->start_boottime / NS_PER_CLOCK_TICK == owner_start_ticks;
}

static __always_inline bool is_listed(const volatile u32 *ids, u32 count, u32 id)
{
	for (u32 i = 0; i < count; i++)
		if (id && ids[i] == id)
			return true;
	return false;
}

static __always_inline int guard(enum fsaccess_operation operation, enum fsaccess_reason reason,
				 u32 id)
{
	struct request request = {.operation = operation, .object = id};

	if (is_owner(bpf_get_current_task_btf()))
		reason = FSACCESS_REASON_NONE;
	return conclude(&request, reason, false, NULL, 0);
}

/* Every way to a map fd ends in bpf_map_new_fd(), which asks this hook. An fd opened read-only is
 * refused as well: it is enough to load a program that writes the map. */
SEC("lsm/bpf_map")
int fsaccess_guard_map(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_map)->id;

	if (!armed || !is_listed(guard_map_ids, FSACCESS_MAX_MAPS, id))
		return 0;
	return guard(FSACCESS_OP_BPF_MAP, FSACCESS_REASON_GUARD_MAP, id);
}

SEC("lsm/bpf_prog")
int fsaccess_guard_program(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_prog)->aux->id;

	if (!armed || !is_listed(guard_program_ids, FSACCESS_MAX_PROGRAMS, id))
		return 0;
	return guard(FSACCESS_OP_BPF_PROGRAM, FSACCESS_REASON_GUARD_PROGRAM, id);
}

/* There is no hook for a new link fd, so the command itself is watched, whatever flags 7.x lets it
 * carry (BPF_COMMON_ATTRS, 1 << 16). */
SEC("lsm/bpf")
int fsaccess_guard_link(u64 *ctx)
{
	u32 id;

	if (!armed || (ctx[0] & BPF_COMMAND) != BPF_LINK_GET_FD_BY_ID)
		return 0;
	id = cast_to(ctx[1], union bpf_attr)->link_id;
	if (!is_listed(guard_link_ids, FSACCESS_MAX_LINKS, id))
		return 0;
	return guard(FSACCESS_OP_BPF_LINK, FSACCESS_REASON_GUARD_LINK, id);
}

/* The owner holds the fds and maps .bss: attaching to it (ptrace, /proc/PID/mem, process_vm_writev,
 * pidfd_getfd) is as good as owning. Looking (PTRACE_MODE_READ) is allowed. */
static __always_inline int judge_trace(const struct task_struct *tracer,
				       const struct task_struct *tracee, u32 mode)
{
	struct request request = {
		.operation = FSACCESS_OP_PTRACE,
		.prot = mode,
		.object = (u32)tracee->tgid,
	};

	if (tracer->tgid == tracee->tgid)
		return 0;
	if (is_owner(tracee))
		return conclude(&request, FSACCESS_REASON_PTRACE_OWNER, false, NULL, 0);
	if (deny_ptrace)
		return conclude(&request, FSACCESS_REASON_PTRACE, true, NULL, 0);
	return 0;
}

SEC("lsm/ptrace_access_check")
int fsaccess_ptrace(u64 *ctx)
{
	const struct task_struct *tracee = cast_to(ctx[0], struct task_struct);
	u32 mode = (u32)ctx[1];

	if (!armed || !(mode & PTRACE_MODE_ATTACH))
		return 0;
	return judge_trace(bpf_get_current_task_btf(), tracee, mode);
}

/* PTRACE_TRACEME: here the caller is the one to be traced, by its parent. */
SEC("lsm/ptrace_traceme")
int fsaccess_traceme(u64 *ctx)
{
	const struct task_struct *tracer = cast_to(ctx[0], struct task_struct);

	if (!armed)
		return 0;
	return judge_trace(tracer, bpf_get_current_task_btf(), PTRACE_MODE_ATTACH);
}

#endif
