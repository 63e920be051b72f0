/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fsaccess: only code from signed dm-verity devices executes, and from the initramfs as long as the
 * trust window is open.
 *
 * How it is put together:
 *   - dm-verity reports each device through bdev_setintegrity; verity_devices remembers it until
 *     bdev_free_security. No user-space program adds a device.
 *   - judge() is the one decision. The hooks gather what it needs and hand it over; conclude()
 *     counts, reports and turns a reason into a return value.
 *   - Nothing is refused until `armed` is 1, so there is no half-attached state.
 *   - The guard gives nobody but the owner an fd to our maps, programs and links.
 *
 * No bpf_probe_read helper is used, so that this works under lockdown=confidentiality. Every struct
 * member is read by a direct load through a pointer that the verifier does not trust, which makes
 * the JIT add an exception table entry: a bad pointer reads as zero. Zero is always the answer that
 * denies (no superblock, no regular file, no device), so a fault cannot grant anything.
 */
#include "include/bpf.h"
#include "include/fsaccess.h"
#include "include/kernel.h"

#include "fsaccess/state.h"
#include "fsaccess/judge.h"
#include "fsaccess/devices.h"
#include "fsaccess/guard.h"
#include "fsaccess/hardening.h"
#include "fsaccess/status.h"

LICENSE("Dual BSD/GPL");

static __always_inline int judge_program(struct linux_binprm *bprm,
					 enum fsaccess_operation operation)
{
	struct request request = {.operation = operation, .prot = PROT_EXEC};
	enum fsaccess_reason reason = judge(&request, data_inode(bprm->file), false);

	return conclude_file(&request, reason, bprm->file);
}

/* Runs for the file named in execve and for each interpreter in turn. */
ARMED_HOOK(LSM_SLEEPABLE "bprm_check_security", fsaccess_exec,
	   judge_program((struct linux_binprm *)ctx[0], FSACCESS_OP_EXEC))

/* execveat(AT_EXECVE_CHECK) never reaches bprm_check_security. A real execve does, and is judged
 * there only, so that it is counted and reported once. */
static __always_inline int judge_check(struct linux_binprm *bprm)
{
	if (!core_field_exists(bprm->is_check) || !core_bitfield(bprm, is_check))
		return 0;
	return judge_program(bprm, FSACCESS_OP_EXEC_CHECK);
}

ARMED_HOOK(LSM_SLEEPABLE "bprm_creds_for_exec", fsaccess_exec_check,
	   judge_check((struct linux_binprm *)ctx[0]))

static long note_flags(struct task_struct *task __attribute__((unused)),
		       const struct vm_area_struct *vma, u64 *flags)
{
	*flags = vma->vm_flags;
	return 0;
}

/* A program whose PT_GNU_STACK asks for it gets a stack that is writable and executable, and no hook
 * is asked when the stack is set up. The first executable mapping that execve makes comes just
 * after: there the stack is looked at, and refusing ends the process. */
static __always_inline bool is_starting_with_executable_stack(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 flags = VM_EXEC; /* what a stack that is not found counts as */

	if (!core_bitfield(task, in_execve))
		return false;
	bpf_find_vma(task, task->mm->start_stack - 1, note_flags, &flags, 0);
	return flags & VM_EXEC;
}

static __always_inline int judge_mmap(u64 *ctx)
{
	struct file *file = (struct file *)ctx[0];
	struct request request = {
		.operation = FSACCESS_OP_MMAP,
		.prot = (u32)ctx[2],
		.flags = ctx[3],
	};
	enum fsaccess_reason reason;

	if (!(request.prot & PROT_EXEC))
		return 0;
	/* `file` is NULL for anonymous memory. Before 7.0 the verifier takes it for never NULL and
	 * deletes a test of it, so the test is made on a pointer it knows nothing of; since 7.0
	 * it demands the test of `file` itself. Without the first, 6.12 oopses here. */
	if (!cast_to(file, struct file) || !file) {
		reason = judge(&request, NULL, false);
		return conclude(&request, reason, true, NULL, 0);
	}
	reason = judge(&request, data_inode(file), false);
	if (reason == FSACCESS_REASON_NONE && is_starting_with_executable_stack()) {
		request.operation = FSACCESS_OP_EXEC;
		reason = FSACCESS_REASON_EXEC_STACK;
	}
	return conclude_file(&request, reason, file);
}

ARMED_HOOK(LSM_SLEEPABLE "mmap_file", fsaccess_mmap, judge_mmap(ctx))

/* Not sleepable: no bpf_real_data_inode, no bpf_d_path. None is needed to see through overlayfs:
 * the vm_file of a mapped overlay file is the layer's own file (backing-file.c, since 6.6), whose
 * inode is the one that hosts the data. */
static __always_inline int judge_mprotect(u64 *ctx)
{
	const struct vm_area_struct *vma = cast_to(ctx[0], struct vm_area_struct);
	struct request request = {
		.operation = FSACCESS_OP_MPROTECT,
		.prot = (u32)ctx[2],
	};
	enum fsaccess_reason reason;
	const struct file *file;
	u64 name = 0;

	if (!(request.prot & PROT_EXEC))
		return 0;
	request.flags = vma->vm_flags;
	if (!(request.prot & PROT_WRITE) && (request.flags & VM_EXEC))
		return 0; /* gains nothing */
	file = vma->vm_file;
	if (file)
		name = (u64)file->f_path.dentry->d_name.name;
	reason = judge(&request, file ? file->f_inode : NULL, vma->anon_vma != NULL);
	return conclude(&request, reason, true, NULL, name);
}

ARMED_HOOK(LSM "file_mprotect", fsaccess_mprotect, judge_mprotect(ctx))
