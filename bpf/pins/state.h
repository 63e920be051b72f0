/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers, state and maps of pins. */
#ifndef BPF_PINS_STATE_H
#define BPF_PINS_STATE_H

#include "../include/bpf.h"
#include "../include/kernel.h"
#include "../include/pins.h"

#define THIS_POLICY POLICY_PINS
#define OWN(name) PINS_##name
#include "../common/state.h"
#include "kernel.h"

enum {
	/* include/linux/fs.h */
	MAY_WRITE = 0x02,
	MAY_APPEND = 0x08,
	MAY_ACCESS = 0x10,
	MAY_OPEN = 0x20,

	/* include/uapi/linux/mount.h */
	MS_REMOUNT = 1 << 5,
	MS_BIND = 1 << 12,
	MS_MOVE = 1 << 13,
	MS_PROPAGATION = 15 << 17, /* unbindable, private, slave, shared */

	MNT_DETACH = 2, /* include/linux/fs.h */

	BPF_LINK_UPDATE = 29, /* enum bpf_cmd */
	BPF_LINK_DETACH = 34,
};

/* ---- Written by the owner (.bss); common/state.h has the rest ---- */

/* n: the filesystem on which the owner calls statfs(2) next becomes guarded[n - 1]; the program
 * answers with 0. No address of the kernel is ever told to user space or taken from it. */
volatile u32 learn;

/* 1: nobody else unmounts lazily, of whatever filesystem, where that can spread to a guarded one. */
volatile u32 strict;

/* ---- Written by the programs ---- */

volatile struct pins_filesystem guarded[PINS_MAX_FILESYSTEMS];

/* ---- Maps ---- */

/* What nobody but the owner gets an fd of: (kind << 32) | id; the value means nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PINS_MAX_IDS);
	__type(key, u64);
	__type(value, u32);
} pins_ids SEC(".maps");

#endif
