/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Nobody but the owner gets at the policy's own objects. Each function is the whole of an
 * ARMED_HOOK; a policy has one for each of the five, and nothing else in it but what is its own.
 */
#ifndef BPF_COMMON_GUARD_H
#define BPF_COMMON_GUARD_H

#include "hook.h"
#include "report.h"

static __always_inline bool is_process(const struct task_struct *task, u32 tgid, u64 start_ticks)
{
	if (!tgid || (u32)task->tgid != tgid)
		return false;
	return tgid == 1 ||
	       task->group_leader->start_boottime / NS_PER_CLOCK_TICK == start_ticks;
}

static __always_inline bool is_owner(const struct task_struct *task)
{
	return is_process(task, owner_tgid, owner_start_ticks) ||
	       is_process(task, deputy_tgid, deputy_start_ticks);
}

/* Who may have fds beside the owner; a policy may define another answer before it includes this. */
#ifndef is_administrator
#define is_administrator(task) false
#endif

static __always_inline bool is_listed(const volatile u32 *ids, u32 count, u32 id)
{
	for (u32 i = 0; i < count; i++)
		if (id && ids[i] == id)
			return true;
	return false;
}

#ifdef GUARDS_BIRTHS
static __always_inline bool is_newborn(u64 address)
{
	return bpf_map_lookup_elem(&births, &address) != NULL;
}

/* Notes what is being made at this address, and refuses its making if that fails: what cannot be
 * guarded is better not made. */
static __always_inline int note_birth(u64 address)
{
	u32 one = 1;

	if (armed && guard_births && is_owner(bpf_get_current_task_btf()))
		return bpf_map_update_elem(&births, &address, &one, BPF_ANY) ? -EPERM : 0;
	bpf_map_delete_elem(&births, &address);
	return 0;
}

/* lsm/bpf_map_create. */
static __always_inline int guard_map_birth(u64 *ctx)
{
	return note_birth(ctx[0]);
}

/* lsm/bpf_prog_load. The program itself may be moved while it is loaded; aux stays. */
static __always_inline int guard_program_birth(u64 *ctx)
{
	return note_birth((u64)cast_to(ctx[0], struct bpf_prog)->aux);
}
#else
#define is_newborn(address) false
#endif

static __always_inline int guard(u32 operation, u32 reason, u32 id)
{
	struct request request = {.operation = operation, .object = id};
	const struct task_struct *task = bpf_get_current_task_btf();

	if (is_owner(task) || is_administrator(task))
		reason = 0;
	return conclude(&request, reason, false, NULL, 0);
}

/* lsm/bpf_map. Every way to a map fd ends in bpf_map_new_fd(), which asks this hook. An fd opened
 * read-only is refused as well: it is enough to load a program that writes the map. */
static __always_inline int guard_map(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_map)->id;

	if (!is_listed(guard_map_ids, POLICY_MAX_MAPS, id) && !is_newborn(ctx[0]))
		return 0;
	return guard(OP_BPF_MAP, REASON_GUARD_MAP, id);
}

/* lsm/bpf_prog. */
static __always_inline int guard_program(u64 *ctx)
{
	const struct bpf_prog_aux *aux = cast_to(ctx[0], struct bpf_prog)->aux;
	u32 id = aux->id;

	if (!is_listed(guard_program_ids, POLICY_MAX_PROGRAMS, id) && !is_newborn((u64)aux))
		return 0;
	return guard(OP_BPF_PROGRAM, REASON_GUARD_PROGRAM, id);
}

/* lsm/bpf. There is no hook for a new link fd, so the command itself is watched, whatever flags 7.x
 * lets it carry (BPF_COMMON_ATTRS, 1 << 16). */
static __always_inline int guard_link(u64 *ctx)
{
	u32 id;

	if ((ctx[0] & BPF_COMMAND) != BPF_LINK_GET_FD_BY_ID)
		return 0;
	id = cast_to(ctx[1], union bpf_attr)->link_id;
	if (!is_listed(guard_link_ids, POLICY_MAX_LINKS, id))
		return 0;
	return guard(OP_BPF_LINK, REASON_GUARD_LINK, id);
}

/* The owner holds the fds and maps .bss: attaching to it (ptrace, /proc/PID/mem, process_vm_writev,
 * pidfd_getfd) is as good as owning. Looking (PTRACE_MODE_READ) is allowed. A `reason_all` other than
 * 0 refuses attaching to anybody, for that reason. */
static __always_inline int judge_trace(const struct task_struct *tracer,
				       const struct task_struct *tracee, u32 mode, u32 reason_all)
{
	struct request request = {
		.operation = OP_PTRACE,
		.prot = mode,
		.object = (u32)tracee->tgid,
	};

	if (tracer->tgid == tracee->tgid)
		return 0;
	if (is_owner(tracee))
		return conclude(&request, REASON_PTRACE_OWNER, false, NULL, 0);
	if (reason_all)
		return conclude(&request, reason_all, true, NULL, 0);
	return 0;
}

/* lsm/ptrace_access_check. */
static __always_inline int guard_ptrace(u64 *ctx, u32 reason_all)
{
	const struct task_struct *tracee = cast_to(ctx[0], struct task_struct);
	u32 mode = (u32)ctx[1];

	if (!(mode & PTRACE_MODE_ATTACH))
		return 0;
	return judge_trace(bpf_get_current_task_btf(), tracee, mode, reason_all);
}

/* lsm/ptrace_traceme: here the caller is the one to be traced, by its parent. */
static __always_inline int guard_traceme(u64 *ctx, u32 reason_all)
{
	return judge_trace(cast_to(ctx[0], struct task_struct), bpf_get_current_task_btf(),
			   PTRACE_MODE_ATTACH, reason_all);
}

#endif
