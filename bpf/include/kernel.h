/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types these policies look into, reduced to the members they read. Offsets are not
 * those of any kernel: every access is relocated (CO-RE) against the running kernel's BTF, and the
 * member's order and neighbours here mean nothing.
 */
#ifndef BPF_INCLUDE_KERNEL_H
#define BPF_INCLUDE_KERNEL_H

#include "bpf.h"

/* File types and modes (include/uapi/linux/stat.h). */
enum {
	S_IFMT = 0170000,
	S_IFREG = 0100000,
	S_IFDIR = 0040000,
	S_IFCHR = 0020000,
	S_IROTH = 0000004,
};

/* Superblock magic numbers (include/uapi/linux/magic.h and the filesystems' own sources). */
#define RAMFS_MAGIC 0x858458f6
#define TMPFS_MAGIC 0x01021994
#define OVERLAYFS_MAGIC 0x794c7630
#define FUSE_MAGIC 0x65735546
#define BTRFS_MAGIC 0x9123683e
#define EROFS_MAGIC 0xe0f5e1e2
#define SQUASHFS_MAGIC 0x73717368
#define MQUEUE_MAGIC 0x19800202
#define BPF_FS_MAGIC 0xcafe4a11

struct gendisk {
	void *private_data;
	u64 diskseq; /* 5.15+: never given out twice */
} __core;

struct block_device {
	u32 bd_dev;
	struct gendisk *bd_disk;
} __core;

struct ns_common {
	unsigned int inum;
} __core;

struct uid_gid_extent {
	u32 first;
	u32 lower_first; /* as the initial namespace counts */
	u32 count;
} __core;

struct uid_gid_map {
	union {
		struct {
			struct uid_gid_extent extent[5]; /* if there are at most five */
			u32 nr_extents;
		};
	};
} __core;

struct user_namespace {
	struct uid_gid_map uid_map;
	struct uid_gid_map gid_map;
	struct user_namespace *parent;
	struct ns_common ns;
} __core;

typedef struct {
	u64 val;
} __core kernel_cap_t;

struct cred {
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
} __core;

struct ipc_namespace {
	struct user_namespace *user_ns;
} __core;

struct mnt_namespace;

struct nsproxy {
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
} __core;

struct super_block {
	u32 s_dev;
	unsigned long s_flags;
	unsigned long s_magic;
	struct block_device *s_bdev;
	struct user_namespace *s_user_ns;
	void *s_fs_info;
} __core;

struct list_head {
	struct list_head *next;
} __core;

struct dentry;

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
} __core;

/* fs/mount.h */
struct mount {
	struct mount *mnt_parent; /* its own address at the top */
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct list_head mnt_mounts; /* children, linked through mnt_child */
	struct list_head mnt_child;
	struct list_head mnt_share; /* ring of peers */
	struct mount *mnt_master;
	struct mnt_namespace *mnt_ns;
	u64 mnt_id_unique; /* 6.8+ (98d2b43081972); grows, and is never given out twice */
	int mnt_group_id;  /* 0: private, or only a slave */
} __core;

struct inode {
	u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino; /* u64 since 7.x; the same width on 64-bit kernels */
	u32 i_rdev;
} __core;

struct qstr {
	const unsigned char *name;
} __core;

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
} __core;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __core;

struct file {
	unsigned int f_flags;
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
} __core;

struct anon_vma;

struct vm_area_struct {
	unsigned long vm_flags;
	struct anon_vma *anon_vma;
	struct file *vm_file;
} __core;

struct linux_binprm {
	unsigned int is_check : 1; /* 6.14+ (AT_EXECVE_CHECK) */
	struct file *file;
} __core;

struct mm_struct {
	unsigned long start_stack;
} __core;

struct fs_struct;
struct files_struct;

struct task_struct {
	unsigned int in_execve : 1;
	int tgid;
	struct mm_struct *mm;
	unsigned int personality;
	struct task_struct *group_leader;
	u64 start_boottime; /* ns since boot, of this thread */
	const struct cred *cred; /* in force: override_creds() included */
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
} __core;

struct bpf_map {
	u32 id;
	char name[16];
} __core;

struct bpf_prog_aux {
	u32 id;
} __core;

struct bpf_prog {
	struct bpf_prog_aux *aux;
} __core;

/* The kernel's own copy of the command's attributes (UAPI union, but relocated all the same). */
union bpf_attr {
	u32 link_id; /* BPF_LINK_GET_FD_BY_ID */
} __core;

enum lsm_integrity_type {
	LSM_INT_DMVERITY_SIG_VALID = 0,
	LSM_INT_DMVERITY_ROOTHASH = 1,
};

/* Value of LSM_INT_DMVERITY_ROOTHASH (include/linux/dm-verity.h). */
struct dm_verity_digest {
	const char *alg;
	const u8 *digest;
	unsigned long digest_len;
} __core;

/*
 * Device mapper. These types stand in the modules' own BTF where dm_mod and dm_verity are modules,
 * so they are known only if the modules are loaded before the policy is; and because
 * bpf_rdonly_cast knows vmlinux types alone, only their offsets are used (core_offset).
 */
struct target_type;

struct mapped_device {
	void *map;
} __core;

struct dm_target {
	struct target_type *type;
	void *private;
} __core;

struct dm_table {
	unsigned int num_targets;
	struct dm_target *targets;
} __core;

enum verity_mode {
	DM_VERITY_MODE_EIO = 0,
	DM_VERITY_MODE_LOGGING = 1,
	DM_VERITY_MODE_RESTART = 2,
	DM_VERITY_MODE_PANIC = 3,
};

struct dm_verity {
	enum verity_mode mode;
	unsigned long *validated_blocks; /* set by check_at_most_once */
	u8 *root_digest_sig;
} __core;

/*
 * Types used only to read bytes or words at an address: a type that every kernel has, with the
 * wanted width at offset 0. Not relocated, because only offset 0 of the first and the array within
 * the second are read: struct new_utsname is UAPI (char sysname[65] first), struct timespec64
 * starts with a 64-bit tv_sec.
 */
struct new_utsname {
	char sysname[65];
};

struct timespec64 {
	s64 tv_sec;
};

static __always_inline u64 read_word(u64 address)
{
	return cast_to(address, struct timespec64)->tv_sec;
}

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 seq_num;
} __core;

/* Context of an iter/bpf_map program: its layout is fixed (the verifier checks the offsets). */
struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map; /* NULL in the last call */
};

/* Context of a cgroup/sysctl program (include/uapi/linux/bpf.h). */
struct bpf_sysctl {
	u32 write; /* 1: the value is being written */
	u32 file_pos;
};

/* kfunc, 7.2+, sleepable LSM programs only: the inode that hosts a file's data (below overlayfs);
 * may be NULL. Weak: on older kernels the address is 0 and the call is dead code. */
extern struct inode *bpf_real_data_inode(struct file *file) __weak __ksym;

#endif
