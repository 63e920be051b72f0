/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Maps, programs and links that are registered, and the process that owns them. */
#ifndef BPF_PINS_OBJECTS_H
#define BPF_PINS_OBJECTS_H

#include "judge.h"
#include "../common/sysctl.h"

/* Every way to a map fd ends here; one opened read-only is enough to load a program that writes. */
SEC("lsm/bpf_map")
int pins_guard_map(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_map)->id;

	if (!armed || !is_registered(PINS_KIND_MAP, id))
		return 0;
	return guard(OP_BPF_MAP, REASON_GUARD_MAP, id);
}

SEC("lsm/bpf_prog")
int pins_guard_program(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_prog)->aux->id;

	if (!armed || !is_registered(PINS_KIND_PROGRAM, id))
		return 0;
	return guard(OP_BPF_PROGRAM, REASON_GUARD_PROGRAM, id);
}

/* The id of the link behind an fd of the caller; 0 or nonsense, which is registered nowhere, if
 * there is none. */
static __always_inline u32 link_of_fd(u32 fd)
{
	const struct fdtable *table =
		cast_to(bpf_get_current_task_btf(), struct task_struct)->files->fdt;
	u64 file, link;

	if (fd >= table->max_fds)
		return 0;
	file = read_word((u64)table->fd + fd * sizeof(u64));
	if (!file)
		return 0;
	link = (u64)cast_to(file, struct file)->private_data;
	return cast_to(link, struct bpf_link)->id;
}

/* A link fd that a process has already (BPF_LINK_DETACH, BPF_LINK_UPDATE; both begin with it), and
 * links by id. The fd is looked up once more by the command: a process that has such an fd, and two
 * threads, may swap it in between. */
SEC("lsm/bpf")
int pins_guard_link(u64 *ctx)
{
	u32 command = ctx[0] & BPF_COMMAND;
	u32 id;

	if (!armed)
		return 0;
	id = cast_to(ctx[1], union bpf_attr)->link_id;
	if (command == BPF_LINK_DETACH || command == BPF_LINK_UPDATE) {
		id = link_of_fd(id);
		if (is_registered(PINS_KIND_LINK, id))
			return guard(PINS_OP_LINK_CHANGE, REASON_GUARD_LINK, id);
	} else if (command == BPF_LINK_GET_FD_BY_ID && is_registered(PINS_KIND_LINK, id)) {
		return guard(OP_BPF_LINK, REASON_GUARD_LINK, id);
	}
	return 0;
}

ARMED_HOOK("lsm/ptrace_access_check", pins_ptrace, guard_ptrace(ctx, 0))
ARMED_HOOK("lsm/ptrace_traceme", pins_traceme, guard_traceme(ctx, 0))

SEC("?cgroup/sysctl")
int pins_sysctl(struct bpf_sysctl *ctx)
{
	return guard_sysctl(ctx, PINS_OP_SYSCTL, PINS_REASON_SWITCHES_OFF);
}

#endif
