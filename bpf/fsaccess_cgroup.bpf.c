/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fsaccess without an owner: the same decisions as BPF_LSM_CGROUP programs on the root cgroup, which
 * stay attached without any fd, pin or process, as long as the kernel runs.
 *
 * What is different (#ifdef FSACCESS_CGROUP in the headers):
 *   - nothing sleeps, so overlayfs is resolved by its structures, and events have a file's name and
 *     not its path;
 *   - no fmod_ret program can be attached so: READ_IMPLIES_EXEC is refused by PID 1's seccomp filter
 *     or not at all; device-mapper ioctls are not gated;
 *   - there is nobody to protect (no owner, no deputy), so no hook on ptrace, and no upgrade.
 *
 * A kernel has CGROUP_LSM_NUM = 10 places for hooks with such programs (include/linux/bpf-cgroup-defs.h,
 * 6.0); these are nine. Needs Linux 6.16: before, the signature's argument cannot be read.
 */
#define FSACCESS_CGROUP 1
#include "fsaccess.bpf.c"
