/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the pins programs and user space share: numbers and records; policy.h has the event and the
 * counters. New enumerators are appended, never renumbered.
 */
#ifndef BPF_INCLUDE_PINS_H
#define BPF_INCLUDE_PINS_H

#include "policy.h"

enum {
	PINS_MAX_FILESYSTEMS = 4,
	PINS_MAX_IDS = 4096,
	PINS_EVENTS_SIZE = 1 << 17,
};

/* What was attempted. */
enum pins_operation {
	PINS_OP_UNLINK = 0,
	PINS_OP_RMDIR = 1,
	PINS_OP_RENAME = 2,
	PINS_OP_CREATE = 3,     /* BPF_OBJ_PIN, mkdir, link, symlink */
	PINS_OP_ATTRIBUTES = 4, /* chmod, chown, times, extended attributes */
	PINS_OP_OPEN = 5,       /* open, BPF_OBJ_GET */
	PINS_OP_UMOUNT = 6,
	PINS_OP_MOUNT = 7, /* a mount that would cover the guarded one */
	PINS_OP_MOVE = 8,
	PINS_OP_PIVOT = 9,
	PINS_OP_REMOUNT = 10,
	PINS_OP_BPF_MAP = 11,
	PINS_OP_BPF_PROGRAM = 12,
	PINS_OP_BPF_LINK = 13,    /* BPF_LINK_GET_FD_BY_ID */
	PINS_OP_LINK_CHANGE = 14, /* BPF_LINK_DETACH, BPF_LINK_UPDATE by an fd that is there */
	PINS_OP_PTRACE = 15,
	PINS_OP_SYSCTL = 16,
	PINS_OP_GONE = 17, /* no attempt: a guarded filesystem has ended */
	PINS_OP_COUNT,
};

enum pins_reason {
	PINS_REASON_NONE = 0,
	PINS_REASON_GUARDED = 1,     /* it is on a guarded filesystem */
	PINS_REASON_MOUNT = 2,       /* it is the mount that holds the guarded filesystem */
	PINS_REASON_ANCESTOR = 3,    /* the mount is above that one */
	PINS_REASON_PROPAGATION = 4, /* the kernel would do the same to one of these */
	PINS_REASON_COVERS = 5,      /* what lies on the way to it would be hidden */
	PINS_REASON_MOUNT_POINT = 6, /* it is a directory on the way to it */
	PINS_REASON_UNKNOWN = 7,     /* MS_MOVE: the hook is not told what is moved */
	PINS_REASON_TOO_MANY = 8,    /* more mounts than are looked at */
	PINS_REASON_RACE = 9,        /* together with another mount call it could do harm */
	PINS_REASON_GUARD_MAP = 10,
	PINS_REASON_GUARD_PROGRAM = 11,
	PINS_REASON_GUARD_LINK = 12,
	PINS_REASON_PTRACE_OWNER = 13,
	PINS_REASON_SWITCHES_OFF = 14, /* kernel.ftrace_enabled */
	PINS_REASON_GONE = 15,
};

/* Kinds of registered ids: the upper half of a key of pins_ids; the lower half is the id. */
enum pins_kind {
	PINS_KIND_MAP = 1,
	PINS_KIND_PROGRAM = 2,
	PINS_KIND_LINK = 3,
};

/* A guarded filesystem, element of the global `guarded`. */
struct pins_filesystem {
	u64 superblock; /*  0: address of the struct super_block; 0: empty entry */
	u64 namespace;  /*  8: address of the mount namespace in which its mount is kept */
	u64 magic;      /* 16 */
	u32 device;     /* 24: s_dev, (major << 20) | minor */
	u32 reserved;   /* 28 */
};

#endif
