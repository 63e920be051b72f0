/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel types that pins alone looks into; include/kernel.h has the rest. */
#ifndef BPF_PINS_KERNEL_H
#define BPF_PINS_KERNEL_H

#include "../include/kernel.h"

/* The mounts of a superblock: a list until 6.17; since 6.18 (09a1b33c080f) a chain that ends
 * with NULL. Which it is is told by the member of struct mount that links them. (CO-RE cuts a name
 * at ___: these are further views of the same types.) */
struct super_block___list {
	struct list_head s_mounts;
} __core;

struct super_block___chain {
	struct mount *s_mounts;
} __core;

struct mount___list {
	struct list_head mnt_instance;
} __core;

struct mount___chain {
	struct mount *mnt_next_for_sb;
} __core;

struct fs_struct {
	struct path root;
} __core;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} __core;

struct files_struct {
	struct fdtable *fdt;
} __core;

struct bpf_link {
	u32 id;
} __core;

#endif
