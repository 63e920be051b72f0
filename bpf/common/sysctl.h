/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Writing 0 to kernel.ftrace_enabled stops every BPF trampoline, and the policies with them (7.x
 * refuses it by itself). A cgroup program needs no trampoline. Attach it to the root cgroup. */
#ifndef BPF_COMMON_SYSCTL_H
#define BPF_COMMON_SYSCTL_H

#include "report.h"

/* The whole of a cgroup/sysctl program; 1 allows. */
static __always_inline int guard_sysctl(struct bpf_sysctl *ctx, u32 operation, u32 reason)
{
	struct request request = {.operation = operation};
	static const char wanted[] = "kernel/ftrace_enabled";
	char name[sizeof(wanted)] = {};

	if (!armed || !ctx->write)
		return 1;
	if (bpf_sysctl_get_name(ctx, name, sizeof(name), 0) < 0)
		return 1; /* a longer name */
#pragma clang loop unroll(full)
	for (u32 i = 0; i < sizeof(wanted); i++)
		if (name[i] != wanted[i])
			return 1;
	return conclude(&request, reason, true, NULL, 0) == 0;
}

#endif
