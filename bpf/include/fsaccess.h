/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the fsaccess programs and user space share: numbers and map values; policy.h has the rest.
 * All integers are in the machine's byte order. New enumerators are appended, never renumbered.
 * User space takes the layouts and names from the object's BTF; the offsets in the comments are
 * for readers.
 */
#ifndef BPF_INCLUDE_FSACCESS_H
#define BPF_INCLUDE_FSACCESS_H

#include "bpf.h"
#include "policy.h"

enum {
	FSACCESS_MAX_DEVICES = 16384,   /* entries of verity_devices */
	FSACCESS_EVENTS_SIZE = 1 << 18, /* bytes of the events ring buffer, a power of two */
	FSACCESS_MAX_FILESYSTEMS = 8,   /* entries of filesystem_magics */
	FSACCESS_ALGORITHM_SIZE = 16,
	FSACCESS_DIGEST_SIZE = 64,
};

/* What was attempted. Also the key of the counters map. */
enum fsaccess_operation {
	FSACCESS_OP_EXEC = 0,       /* execve of a program or an interpreter (bprm_check_security) */
	FSACCESS_OP_EXEC_CHECK = 1, /* execveat(AT_EXECVE_CHECK), 6.14+ (bprm_creds_for_exec) */
	FSACCESS_OP_MMAP = 2,       /* mmap or shmat with PROT_EXEC (mmap_file) */
	FSACCESS_OP_MPROTECT = 3,   /* mprotect that gives PROT_EXEC (file_mprotect) */
	FSACCESS_OP_PTRACE = 4,     /* ptrace attach, /proc/PID/mem, process_vm_*, pidfd_getfd */
	FSACCESS_OP_BPF_MAP = 5,    /* a new fd to a guarded map (bpf_map) */
	FSACCESS_OP_BPF_PROGRAM = 6, /* a new fd to a guarded program (bpf_prog) */
	FSACCESS_OP_BPF_LINK = 7,   /* BPF_LINK_GET_FD_BY_ID of a guarded link (bpf) */
	FSACCESS_OP_BRK = 8,        /* memory for a process in which reading implies executing */
	FSACCESS_OP_VERITY = 9,     /* another or weaker table for a trusted dm-verity device */
	FSACCESS_OP_DEVICE_MAPPER = 10, /* device-mapper ioctl that changes a table */
	FSACCESS_OP_SYSCTL = 11,    /* write to kernel.ftrace_enabled */
	FSACCESS_OP_SIGNAL = 12,    /* a signal to a keeper (task_kill) */
	FSACCESS_OP_COUNT,
};

/* Why something was (or in audit mode would have been) refused. */
enum fsaccess_reason {
	FSACCESS_REASON_NONE = 0,
	FSACCESS_REASON_WRITE_EXEC = 1,        /* writable and executable at once */
	FSACCESS_REASON_ANONYMOUS = 2,         /* executable memory with no file behind it */
	FSACCESS_REASON_NOT_REGULAR = 3,       /* not a regular file: device node, socket, pipe … */
	FSACCESS_REASON_FILESYSTEM = 4,        /* filesystem type not in filesystem_magics */
	FSACCESS_REASON_OVERLAY = 5,           /* overlayfs file whose data's layer cannot be told */
	FSACCESS_REASON_NO_DEVICE = 6,         /* the filesystem is not on a block device */
	FSACCESS_REASON_UNTRUSTED_DEVICE = 7,  /* block device that is not a known dm-verity one */
	FSACCESS_REASON_UNSIGNED_DEVICE = 8,   /* dm-verity device without a valid signature */
	FSACCESS_REASON_MODIFIED = 9,          /* private mapping that may hold written pages (COW) */
	FSACCESS_REASON_PTRACE_OWNER = 10,     /* attach to the owner */
	FSACCESS_REASON_PTRACE = 11,           /* attach to any process, where deny_ptrace is set */
	FSACCESS_REASON_GUARD_MAP = 12,
	FSACCESS_REASON_GUARD_PROGRAM = 13,
	FSACCESS_REASON_GUARD_LINK = 14,
	FSACCESS_REASON_IMPLIED_EXEC = 15,     /* personality READ_IMPLIES_EXEC */
	FSACCESS_REASON_TABLE_CHANGED = 16,    /* the device no longer has the table it was
						  trusted for, or is about to get another */
	FSACCESS_REASON_NOT_OWNER = 17,        /* reserved to the owner */
	FSACCESS_REASON_SWITCHES_OFF = 18,     /* would stop BPF trampolines, and so the policy */
	FSACCESS_REASON_EXEC_STACK = 19,       /* program that asks for an executable stack */
	FSACCESS_REASON_SIGNAL_OWNER = 20,     /* the keeper's end would be the policy's */
};

/* Bits of fsaccess_device.flags. Trusted means SIGNED. */
enum {
	FSACCESS_DEVICE_SIGNED = 1 << 0,    /* signature verified by the kernel, table strict */
	FSACCESS_DEVICE_ROOT_HASH = 1 << 1, /* algorithm, digest and digest_length are filled in */
	FSACCESS_DEVICE_LENIENT = 1 << 2,   /* signed, but its table lets altered blocks through
					       (ignore_corruption, check_at_most_once): not trusted */
	FSACCESS_DEVICE_HELD = 1 << 3,      /* another table was refused: no resume until the root hash
					       recorded here comes back, signed */
};

/* Value of verity_devices; the key is the device number, (major << 20) | minor. 128 bytes. */
struct fsaccess_device {
	u64 first_seen; /*  0: ns since boot (CLOCK_BOOTTIME) when the device was first recorded */
	u64 changed;    /*  8: ns since boot of the last report by dm-verity */
	u64 identity;   /* 16: address of the kernel's struct block_device; a number reused by
			       another device does not match it */
	u32 flags;      /* 24: FSACCESS_DEVICE_* */
	u32 digest_length;                        /* 28: bytes, at most 64 */
	char algorithm[FSACCESS_ALGORITHM_SIZE];  /* 32: hash name, NUL-terminated: "sha256" */
	u8 digest[FSACCESS_DIGEST_SIZE];          /* 48: root hash, digest_length bytes */
	u64 diskseq;     /* 112: the disk's sequence number (5.15+), which no other disk ever has */
	u64 target_type; /* 120: address of the kernel's struct target_type of dm-verity; a device
			     whose table was swapped does not match it; 0: not known */
};

/*
 * In struct policy_event (policy.h):
 *   prot    mmap, mprotect: PROT_* bits asked for; ptrace: PTRACE_MODE_* bits
 *   flags   mmap: MAP_*; mprotect: VM_* of the mapping; device_mapper: the ioctl
 */

#endif
