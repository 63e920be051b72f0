/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel types userns looks into, reduced to the members it reads; all accesses are relocated. */
#ifndef BPF_USERNS_KERNEL_H
#define BPF_USERNS_KERNEL_H

#include "../include/bpf.h"

struct ns_common {
	unsigned int inum;
} __core;

struct user_namespace {
	struct user_namespace *parent;
	struct ns_common ns;
} __core;

struct cred {
	struct user_namespace *user_ns;
} __core;

struct task_struct {
	const struct cred *cred;
} __core;

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	struct user_namespace *s_user_ns;
	void *s_fs_info;
} __core;

struct vfsmount {
	struct super_block *mnt_sb;
} __core;

/* fs/mount.h; mnt_id_unique: 6.8+ (98d2b43081972). Never given out twice, unlike mnt_id. */
struct mount {
	struct vfsmount mnt;
	u64 mnt_id_unique;
} __core;

struct qstr {
	const unsigned char *name;
} __core;

struct dentry {
	struct qstr d_name;
} __core;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __core;

struct inode {
	struct super_block *i_sb;
} __core;

struct file {
	unsigned int f_flags;
	struct path f_path;
} __core;

/* Overlayfs: in the module's own BTF, so known only if it is loaded before the policy is; only
 * offsets are used, because bpf_rdonly_cast knows vmlinux types alone. */
struct ovl_layer {
	struct vfsmount *mnt;
} __core;

struct ovl_fs {
	struct ovl_layer *layers; /* [0].mnt is the upper one, NULL if there is none */
} __core;

/* Not relocated: only bytes and a 64-bit word at offset 0 are read. */
struct new_utsname {
	char sysname[65];
};

struct timespec64 {
	s64 tv_sec;
};

#endif
