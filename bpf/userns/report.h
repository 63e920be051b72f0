/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a reason to an answer: counters, events, return value. */
#ifndef BPF_USERNS_REPORT_H
#define BPF_USERNS_REPORT_H

#include "judge.h"

/* Copies a NUL-terminated kernel string; unrolled because offsets into a kernel type must be
 * constant. */
static __noinline u32 copy_name(char *to, u64 address)
{
	const struct new_utsname *bytes = cast_to(address, struct new_utsname);
	u32 length = 0;

#pragma clang loop unroll(full)
	for (u32 i = 0; i < USERNS_NAME_SIZE - 1; i++) {
		char byte = bytes->sysname[i];

		if (!byte)
			break;
		to[i] = byte;
		length = i + 1;
	}
	return length;
}

/* Counts, reports and answers. Nobody waits: a full ring buffer loses the event and counts it. */
static __noinline long refuse(const struct request *request, enum userns_reason reason,
			     const struct super_block *sb)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	bool only_audit = audit;
	struct userns_event *event;
	u32 operation;

	if (!request)
		return -EPERM;
	operation = request->operation;
	if (operation < USERNS_OP_COUNT)
		__sync_fetch_and_add(only_audit ? &audited[operation] : &denied[operation], 1);
	event = bpf_ringbuf_reserve(&userns_events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&events_lost, 1);
		return only_audit ? 0 : -EPERM;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_boot_ns();
	event->operation = operation;
	event->reason = reason;
	event->verdict = only_audit ? USERNS_AUDITED : USERNS_DENIED;
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->uid = (u32)bpf_get_current_uid_gid();
	event->mount = request->mount;
	event->managed = request->managed;
	event->userns = own_namespace()->ns.inum;
	if (sb) {
		const struct super_block *known = cast_to(sb, struct super_block);

		event->magic = known->s_magic;
		event->device = known->s_dev;
	}
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (request->name)
		event->name_length = copy_name(event->name, request->name);
	bpf_ringbuf_submit(event, 0);
	return only_audit ? 0 : -EPERM;
}

#endif
