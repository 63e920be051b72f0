/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What all policies share with user space: verdicts, counters and the event record. All integers
 * are in the machine's byte order. User space takes layouts and names from the object's BTF; the
 * offsets in the comments are for readers.
 */
#ifndef BPF_INCLUDE_POLICY_H
#define BPF_INCLUDE_POLICY_H

#include "bpf.h"

enum {
	POLICY_MAX_MAPS = 16,     /* entries of guard_map_ids */
	POLICY_MAX_PROGRAMS = 32, /* entries of guard_program_ids */
	POLICY_MAX_LINKS = 32,    /* entries of guard_link_ids */
	POLICY_COMM_SIZE = 16,
	POLICY_PATH_SIZE = 256,
};

/* Who wrote an event; operation and reason are numbers of that policy. */
enum policy_number {
	POLICY_FSACCESS = 0,
	POLICY_USERNS = 1,
	POLICY_PINS = 2,
};

/* What keeps a policy attached. Appended to, never renumbered. */
enum policy_keep {
	POLICY_KEPT_BY_PROCESS = 0,   /* the fds of the owner, or of what it left them to */
	POLICY_KEPT_BY_EXEC = 1,      /* fds that each PID 1 hands to the next */
	POLICY_KEPT_BY_PINS = 2,      /* pins in a bpf filesystem */
	POLICY_KEPT_OWNERLESS = 3,    /* attached to the root cgroup itself */
	POLICY_KEPT_BY_KEEPER = 4,    /* the fds of a process that does nothing else */
};

enum policy_verdict {
	POLICY_ALLOWED = 0, /* counted, never an event */
	POLICY_DENIED = 1,  /* refused with EPERM */
	POLICY_AUDITED = 2, /* would have been refused; audit mode let it pass */
};

/* Value of counters; the key is the policy's operation. 32 bytes. */
struct policy_counter {
	u64 allowed; /*  0 */
	u64 denied;  /*  8 */
	u64 audited; /* 16 */
	u64 dropped; /* 24: events lost because the ring buffer was full */
};

/* Bits of policy_event.path_flags. */
enum {
	POLICY_PATH_NAME_ONLY = 1 << 0, /* the file's last component, not its path */
	POLICY_PATH_TRUNCATED = 1 << 1, /* longer than the field; the path is left out */
};

/* One record of the events ring buffer: 360 bytes, always whole. What prot, flags and object are
 * depends on the policy and the operation: see its own header. */
struct policy_event {
	u64 time;         /*   0: ns since boot (CLOCK_BOOTTIME) */
	u32 operation;    /*   8 */
	u32 reason;       /*  12 */
	u32 verdict;      /*  16: POLICY_DENIED or POLICY_AUDITED */
	u32 pid;          /*  20: process (tgid), initial pid namespace */
	u32 tid;          /*  24: thread, initial pid namespace */
	u32 uid;          /*  28: real uid, initial user namespace */
	u64 cgroup;       /*  32: cgroup v2 id of the process */
	u64 inode;        /*  40: of the file (below an overlay: of its data), or 0 */
	u64 magic;        /*  48: superblock magic of that file's filesystem, or 0 */
	u32 device;       /*  56: s_dev of that filesystem, (major << 20) | minor */
	u32 prot;         /*  60 */
	u64 flags;        /*  64 */
	u32 object;       /*  72: for the guard: id of the map, program or link; for ptrace the
			     target's tgid */
	u32 path_flags;   /*  76: POLICY_PATH_* */
	u32 path_length;  /*  80: bytes in path without the NUL; 0: not known */
	char comm[POLICY_COMM_SIZE]; /*  84: NUL-terminated */
	char path[POLICY_PATH_SIZE]; /* 100: NUL-terminated, as the process sees it */
	u32 policy;       /* 356: enum policy_number */
};

#endif
