/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel types that userns alone looks into; include/kernel.h has the rest. */
#ifndef BPF_USERNS_KERNEL_H
#define BPF_USERNS_KERNEL_H

#include "../include/kernel.h"

/* An entry is 8 bytes: tag and permissions, 16 bits each, and a kernel id of 32 bits. */
struct posix_acl_entry {
	short e_tag;
	unsigned short e_perm;
	unsigned int id;
};

struct posix_acl {
	unsigned int a_count;
	struct posix_acl_entry a_entries[0];
} __core;

/* Overlayfs: in the module's own BTF, so known only if it is loaded before the policy is; only
 * offsets are used, because bpf_rdonly_cast knows vmlinux types alone. */
struct ovl_layer {
	struct vfsmount *mnt;
} __core;

struct ovl_fs {
	struct ovl_layer *layers; /* [0].mnt is the upper one, NULL if there is none */
} __core;

#endif
