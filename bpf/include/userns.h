/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the userns programs and user space share: numbers and records. All integers are in the
 * machine's byte order. New enumerators are appended, never renumbered.
 */
#ifndef BPF_INCLUDE_USERNS_H
#define BPF_INCLUDE_USERNS_H

#include "bpf.h"
#include "policy.h"

enum {
	USERNS_MAX_NAMESPACES = 16384, /* entries of userns_mounts and userns_groups */
	USERNS_MAX_MOUNTS = 4096,      /* entries of each inner map */
	/* Bytes of the teardown ring buffer: each managed namespace once, 16 bytes a record. */
	USERNS_TEARDOWN_SIZE = 1 << 18,
	USERNS_EVENTS_SIZE = 1 << 18,
	USERNS_MAX_LEVELS = 34, /* a namespace, its parent …, the initial one: the kernel's most */
};

/* What was attempted. Also the key of the counters map. */
enum userns_operation {
	USERNS_OP_CHOWN = 0,
	USERNS_OP_MKDIR = 1,
	USERNS_OP_MKNOD = 2, /* mknod, open(O_CREAT), bind of a UNIX socket, BPF_OBJ_PIN */
	USERNS_OP_SYMLINK = 3,
	USERNS_OP_LINK = 4,
	USERNS_OP_WHITEOUT = 5, /* rename(RENAME_WHITEOUT) makes a character device */
	USERNS_OP_TMPFILE = 6,  /* open(O_TMPFILE) */
	USERNS_OP_MQUEUE = 7,   /* mq_open(O_CREAT), which asks no path hook */
	USERNS_OP_OVERLAY = 8,  /* mount of an overlay, whose upper layer is written with no hook */
	USERNS_OP_SETGROUPS = 9,
	USERNS_OP_BPF_MAP = 10,     /* a new fd to a guarded map (bpf_map) */
	USERNS_OP_BPF_PROGRAM = 11, /* a new fd to a guarded program (bpf_prog) */
	USERNS_OP_BPF_LINK = 12,    /* BPF_LINK_GET_FD_BY_ID of a guarded link (bpf) */
	USERNS_OP_PTRACE = 13,      /* attaching to the owner */
	USERNS_OP_ACL = 14,         /* setxattr of a POSIX ACL */
	USERNS_OP_CAPABILITY = 15,  /* setxattr of file capabilities */
	USERNS_OP_IPC = 16,         /* shmget, msgget or semget that makes an object */
	USERNS_OP_SUBVOLUME = 17,   /* btrfs ioctl that makes a subvolume or a snapshot */
	USERNS_OP_COUNT,
};

enum userns_reason {
	USERNS_REASON_NONE = 0,
	USERNS_REASON_MOUNT = 1,     /* neither owned by the namespace nor on its list */
	USERNS_REASON_TOO_DEEP = 2,  /* the initial namespace is not reached */
	USERNS_REASON_UPPER = 3,     /* the overlay's upper filesystem is not the namespace's */
	USERNS_REASON_OVERLAY = 4,   /* what is below the overlay cannot be told */
	USERNS_REASON_SETGROUPS = 5, /* denied for the namespace or one above it */
	USERNS_REASON_GUARD_MAP = 6,
	USERNS_REASON_GUARD_PROGRAM = 7,
	USERNS_REASON_GUARD_LINK = 8,
	USERNS_REASON_PTRACE_OWNER = 9,
	USERNS_REASON_IDS = 10,      /* it names an id of the namespace's and outlasts it */
	USERNS_REASON_IPC = 11,      /* the IPC namespace outlasts the user namespace */
};

/*
 * In struct policy_event (policy.h):
 *   prot    inode of the process' own user namespace
 *   flags   unique mount id; 0: no mount
 *   object  inode of the managed namespace; 0: none found
 *   path    the last component (POLICY_PATH_NAME_ONLY)
 */

#endif
