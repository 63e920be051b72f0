/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a reason to an answer: counters, events, return value. */
#ifndef BPF_COMMON_REPORT_H
#define BPF_COMMON_REPORT_H

#include "state.h"

struct copy {
	u64 from;
	char *to;
	u64 most; /* alone in its eight bytes, or the verifier forgets its value */
	u32 length;
};

static long copy_character(u32 i, struct copy *copy)
{
	/* The verifier wants constant offsets into a kernel type, so the address moves along. */
	char byte = cast_to(copy->from + i, struct new_utsname)->sysname[0];

	if (i >= copy->most || !byte)
		return 1;
	copy->to[i] = byte;
	copy->length = i + 1;
	return 0;
}

/* Copies a NUL-terminated kernel string of at most size - 1 bytes; returns its length. */
static __noinline u32 copy_string(char *to, u32 size, u64 address)
{
	struct copy copy = {.from = address, .to = to, .most = size - 1};

	bpf_loop(size - 1, copy_character, &copy, 0);
	return copy.length;
}

/* What a hook asks, and what it found out on the way; the members are those of the event. */
struct request {
	u32 operation;
	u32 prot;
	u64 flags;
	u32 object;
	u32 device;
	u64 inode;
	u64 magic;
};

static __always_inline void note_filesystem(struct request *request, const struct super_block *sb)
{
	request->device = sb->s_dev;
	request->magic = sb->s_magic;
}

static __noinline void fill_event(struct policy_event *event, const struct request *request,
				  u32 reason, u32 verdict)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();

	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_boot_ns();
	event->operation = request->operation;
	event->reason = reason;
	event->verdict = verdict;
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->uid = (u32)bpf_get_current_uid_gid();
	event->cgroup = bpf_get_current_cgroup_id();
	event->inode = request->inode;
	event->magic = request->magic;
	event->device = request->device;
	event->prot = request->prot;
	event->flags = request->flags;
	event->object = request->object;
	event->policy = THIS_POLICY;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

/* Counts, reports and answers. `reason` 0 allows. `path` needs a hook in which bpf_d_path is allowed
 * (a sleepable one); `name` is the address of a file's last component for the hooks that are not;
 * either may be NULL or 0. The event is left out, and counted, when the ring buffer is full: nobody
 * waits. */
static __always_inline int conclude(const struct request *request, u32 reason, bool auditable,
				    const struct path *path, u64 name)
{
	u32 verdict = auditable && audit ? POLICY_AUDITED : POLICY_DENIED;
	int answer = verdict == POLICY_AUDITED ? 0 : -EPERM;
	u32 key = request->operation;
	struct policy_counter *counter = bpf_map_lookup_elem(&counters, &key);
	struct policy_event *event;
	long length;

	if (!reason) {
		if (counter)
			__sync_fetch_and_add(&counter->allowed, 1);
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (counter) {
		if (verdict == POLICY_AUDITED)
			__sync_fetch_and_add(&counter->audited, 1);
		else
			__sync_fetch_and_add(&counter->denied, 1);
		if (!event)
			__sync_fetch_and_add(&counter->dropped, 1);
	}
	if (!event)
		return answer;
	fill_event(event, request, reason, verdict);
	if (path) {
		length = bpf_d_path(path, event->path, sizeof(event->path));
		if (length > 0)
			event->path_length = (u32)length - 1;
		else
			event->path_flags = POLICY_PATH_TRUNCATED;
	} else if (name) {
		event->path_length = copy_string(event->path, sizeof(event->path), name);
		event->path_flags = POLICY_PATH_NAME_ONLY;
	}
	bpf_ringbuf_submit(event, 0);
	return answer;
}

#endif
