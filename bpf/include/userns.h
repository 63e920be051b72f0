/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the userns programs and user space share: numbers and records. All integers are in the
 * machine's byte order. New enumerators are appended, never renumbered.
 */
#ifndef BPF_INCLUDE_USERNS_H
#define BPF_INCLUDE_USERNS_H

#include "bpf.h"

enum {
	USERNS_MAX_NAMESPACES = 16384, /* entries of userns_mounts and userns_groups */
	USERNS_MAX_MOUNTS = 4096,      /* entries of each inner map */
	/* Bytes of the teardown ring buffer: each managed namespace once, 16 bytes a record. */
	USERNS_TEARDOWN_SIZE = 1 << 18,
	USERNS_EVENTS_SIZE = 1 << 17,
	USERNS_MAX_LEVELS = 34, /* a namespace, its parent …, the initial one: the kernel's most */
	USERNS_COMM_SIZE = 16,
	USERNS_NAME_SIZE = 64,
};

/* What was attempted. */
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
	USERNS_OP_COUNT,
};

enum userns_verdict {
	USERNS_ALLOWED = 0,
	USERNS_DENIED = 1,  /* refused with EPERM */
	USERNS_AUDITED = 2, /* would have been refused; audit mode let it pass */
};

enum userns_reason {
	USERNS_REASON_NONE = 0,
	USERNS_REASON_MOUNT = 1,     /* neither owned by the namespace nor on its list */
	USERNS_REASON_TOO_DEEP = 2,  /* the initial namespace is not reached */
	USERNS_REASON_UPPER = 3,     /* the overlay's upper filesystem is not the namespace's */
	USERNS_REASON_OVERLAY = 4,   /* what is below the overlay cannot be told */
	USERNS_REASON_SETGROUPS = 5, /* denied for the namespace or one above it */
};

/* One record of the events ring buffer: 160 bytes. */
struct userns_event {
	u64 time;                        /*   0: ns since boot (CLOCK_BOOTTIME) */
	enum userns_operation operation; /*   8 */
	enum userns_reason reason;       /*  12 */
	enum userns_verdict verdict;     /*  16 */
	u32 pid;                         /*  20: process, initial pid namespace */
	u32 tid;                         /*  24 */
	u32 uid;                         /*  28: real uid, initial user namespace */
	u64 mount;                       /*  32: unique mount id; 0: no mount */
	u32 managed;                     /*  40: inode of the managed namespace; 0: none found */
	u32 userns;                      /*  44: inode of the process' own namespace */
	u64 magic;                       /*  48: of the filesystem */
	u32 device;                      /*  56: its s_dev, (major << 20) | minor */
	u32 name_length;                 /*  60: bytes in name without the NUL */
	char comm[USERNS_COMM_SIZE];     /*  64 */
	char name[USERNS_NAME_SIZE];     /*  80: last component */
	u64 reserved[2];                 /* 144: zero */
};

#endif
