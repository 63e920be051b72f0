/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ways round the policy that its own hooks do not see. */
#ifndef BPF_FSACCESS_HARDENING_H
#define BPF_FSACCESS_HARDENING_H

#include "guard.h"
#include "../common/sysctl.h"

enum {
	ENOMEM = 12,
	READ_IMPLIES_EXEC = 0x0400000, /* include/uapi/linux/personality.h */

	DEVICE_MAPPER_CONTROL = 10 << 20 | 236, /* misc, MAPPER_CTRL_MINOR */
	DM_IOCTL = 0xfd,                        /* ioctl type, include/uapi/linux/dm-ioctl.h */
	DM_REMOVE_ALL = 1,
	DM_DEV_SUSPEND = 6, /* suspends and resumes */
	DM_TABLE_LOAD = 9,
	DM_TARGET_MSG = 14,
};

#ifndef FSACCESS_CGROUP /* neither can be attached without a link that somebody holds */

/* With this personality brk() gives a heap that is writable and executable, to anybody, and neither
 * mmap_file nor file_mprotect is asked. All memory is accounted here, though. (mmap of readable
 * memory is refused by mmap_file under this personality anyway, so no program that runs under the
 * policy loses anything.) The hook vm_enough_memory itself takes no BPF program. */
SEC("fmod_ret/security_vm_enough_memory_mm")
int fsaccess_brk(u64 *ctx __attribute__((unused)))
{
	struct request request = {.operation = FSACCESS_OP_BRK};
	struct task_struct *task = bpf_get_current_task_btf();

	if (!armed || !(task->personality & READ_IMPLIES_EXEC))
		return 0;
	return conclude(&request, FSACCESS_REASON_IMPLIED_EXEC, true, NULL, 0) ? -ENOMEM : 0;
}

/* ---- Not loaded unless asked for (the `?`) ---- */

/* A signed device can be given another table (error, then linear): no integrity hook fires, and the
 * device number stays. What a table is cannot be judged here without a race, so who loads it is:
 * from `armed` on only the owner makes, swaps and wakes device-mapper devices. That ends
 * veritysetup, cryptsetup and lvm for everybody else, hence the choice. */
static __always_inline int judge_ioctl(u64 *ctx)
{
	const struct inode *inode = cast_to(ctx[0], struct file)->f_inode;
	struct request request = {
		.operation = FSACCESS_OP_DEVICE_MAPPER,
		.flags = (u32)ctx[1],
	};
	u32 type = (ctx[1] >> 8) & 0xff, number = ctx[1] & 0xff;

	if (type != DM_IOCTL)
		return 0;
	if (number != DM_REMOVE_ALL && number != DM_DEV_SUSPEND && number != DM_TABLE_LOAD &&
	    number != DM_TARGET_MSG)
		return 0;
	if ((inode->i_mode & S_IFMT) != S_IFCHR || inode->i_rdev != DEVICE_MAPPER_CONTROL)
		return 0;
	return conclude(&request,
			is_owner(bpf_get_current_task_btf()) ? FSACCESS_REASON_NONE
							     : FSACCESS_REASON_NOT_OWNER,
			true, NULL, 0);
}

ARMED_HOOK("?lsm/file_ioctl", fsaccess_dm_ioctl, judge_ioctl(ctx))
/* A 32-bit system call (int 0x80 in a 64-bit program too) comes this way. */
ARMED_HOOK("?lsm/file_ioctl_compat", fsaccess_dm_ioctl_compat, judge_ioctl(ctx))

#endif

SEC("?cgroup/sysctl")
int fsaccess_sysctl(struct bpf_sysctl *ctx)
{
	return guard_sysctl(ctx, FSACCESS_OP_SYSCTL, FSACCESS_REASON_SWITCHES_OFF);
}

#endif
