/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types pins looks into beside those of include/kernel.h, reduced to the members it
 * reads. Names end in ___pins, which a loader strips: they are further views of the same types.
 */
#ifndef BPF_PINS_KERNEL_H
#define BPF_PINS_KERNEL_H

#include "../include/bpf.h"

struct list_head {
	struct list_head *next;
} __core;

struct dentry___pins {
	struct dentry___pins *d_parent;
	struct inode *d_inode;
	struct qstr d_name;
	struct super_block *d_sb;
} __core;

struct super_block___pins {
	u32 s_dev;
	unsigned long s_magic;
} __core;

/* The mounts of a superblock: a list until 6.17; since 6.18 (09a1b33c080f) a chain that ends
 * with NULL. Which it is is told by the member of struct mount that links them. */
struct super_block___list {
	struct list_head s_mounts;
} __core;

struct super_block___chain {
	struct mount___pins *s_mounts;
} __core;

struct vfsmount___pins {
	struct dentry___pins *mnt_root;
	struct super_block___pins *mnt_sb;
} __core;

struct user_namespace;

struct mnt_namespace___pins {
	struct user_namespace *user_ns;
} __core;

struct mount___pins {
	struct mount___pins *mnt_parent; /* its own address at the top */
	struct dentry___pins *mnt_mountpoint;
	struct vfsmount___pins mnt;
	struct list_head mnt_mounts; /* children, linked through mnt_child */
	struct list_head mnt_child;
	struct list_head mnt_share; /* ring of peers */
	struct mount___pins *mnt_master;
	struct mnt_namespace___pins *mnt_ns;
	u64 mnt_id_unique; /* 6.8+; grows, and is never given out twice */
	int mnt_group_id;  /* 0: private, or only a slave */
} __core;

struct mount___list {
	struct list_head mnt_instance;
} __core;

struct mount___chain {
	struct mount___pins *mnt_next_for_sb;
} __core;

struct path___pins {
	struct vfsmount___pins *mnt;
	struct dentry___pins *dentry;
} __core;

struct fs_struct___pins {
	struct path___pins root;
} __core;

struct nsproxy___pins {
	struct mnt_namespace___pins *mnt_ns;
} __core;

struct fdtable___pins {
	unsigned int max_fds;
	struct file **fd;
} __core;

struct files_struct___pins {
	struct fdtable___pins *fdt;
} __core;

struct file___pins {
	void *private_data;
} __core;

struct bpf_link___pins {
	u32 id;
} __core;

struct task_struct___pins {
	struct fs_struct___pins *fs;
	struct files_struct___pins *files;
	struct nsproxy___pins *nsproxy;
} __core;

#endif
