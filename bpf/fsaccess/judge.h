/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one decision: may this be executed? */
#ifndef BPF_FSACCESS_JUDGE_H
#define BPF_FSACCESS_JUDGE_H

#include "device_mapper.h"
#include "../common/report.h"

static __always_inline bool is_listed_filesystem(u64 magic)
{
	if (magic == FUSE_MAGIC || magic == BTRFS_MAGIC)
		return false;
	for (u32 i = 0; i < FSACCESS_MAX_FILESYSTEMS; i++)
		if (filesystem_magics[i] && magic == filesystem_magics[i])
			return true;
	return false;
}

/* Notes in the request which file it is about. */
static __always_inline void describe(struct request *request, const struct inode *inode)
{
	note_filesystem(request, inode->i_sb);
	request->inode = inode->i_ino;
}

/* Is what this inode holds trusted code? `inode` hosts the data: overlayfs is already resolved. */
static __always_inline enum fsaccess_reason judge_inode(const struct request *request,
							const struct inode *inode)
{
	const struct block_device *bdev = inode->i_sb->s_bdev;
	const struct fsaccess_device *record;
	u64 magic = request->magic;
	u32 window, device;

	/* A device node on a trusted filesystem leads to data that is not the filesystem's. */
	if ((inode->i_mode & S_IFMT) != S_IFREG)
		return FSACCESS_REASON_NOT_REGULAR;
	if (magic == OVERLAYFS_MAGIC)
		return FSACCESS_REASON_OVERLAY;

	/* The initramfs is a ramfs or tmpfs; an anonymous device number may come back as anything. */
	window = initramfs_dev;
	if (window && request->device == window &&
	    (magic == RAMFS_MAGIC || magic == TMPFS_MAGIC))
		return FSACCESS_REASON_NONE;

	if (!is_listed_filesystem(magic))
		return FSACCESS_REASON_FILESYSTEM;
	if (!bdev)
		return FSACCESS_REASON_NO_DEVICE;
	device = bdev->bd_dev;
	record = bpf_map_lookup_elem(&verity_devices, &device);
	if (!record || !is_record_of(record, bdev))
		return FSACCESS_REASON_UNTRUSTED_DEVICE;
	if (!(record->flags & FSACCESS_DEVICE_SIGNED))
		return FSACCESS_REASON_UNSIGNED_DEVICE;
	/* Only verity tables are reported; any other may have taken its place. */
	if (record->target_type && target_type(target_of(bdev)) != record->target_type)
		return FSACCESS_REASON_TABLE_CHANGED;
	return FSACCESS_REASON_NONE;
}

/* The decision about memory or a file that is to be executed. `inode` is NULL for anonymous
 * memory; `modified` says that the mapping may hold pages that were written. */
static __always_inline enum fsaccess_reason judge(struct request *request,
						  const struct inode *inode, bool modified)
{
	if (inode)
		describe(request, inode);
	if ((request->prot & (PROT_WRITE | PROT_EXEC)) == (PROT_WRITE | PROT_EXEC))
		return FSACCESS_REASON_WRITE_EXEC;
	if (modified)
		return FSACCESS_REASON_MODIFIED;
	if (!inode)
		return FSACCESS_REASON_ANONYMOUS;
	return judge_inode(request, inode);
}

/* The inode that hosts a file's data. Where the kernel cannot look through overlayfs (no
 * bpf_real_data_inode before 7.2) or does not say, the overlay's own inode is returned, and
 * judge_inode() refuses that. */
#ifdef FSACCESS_CGROUP
/* fs/overlayfs/ovl_entry.h (the names since 6.5) */
struct ovl_path {
	struct dentry *dentry;
} __core;

struct ovl_entry {
	unsigned int __numlower;
	struct ovl_path __lowerstack[];
} __core;

struct ovl_inode {
	struct inode vfs_inode;
	struct dentry *__upperdentry;
	struct ovl_entry *oe;
} __core;

#define TYPE_SIZE 1 /* of __builtin_preserve_type_info: BPF_CORE_TYPE_SIZE */
#define core_size(type) __builtin_preserve_type_info(*(typeof(type) *)0, TYPE_SIZE)

/* The kfunc may sleep and a cgroup's program may not: the same by overlayfs' own structures, as far
 * as the module was there when the program was loaded. A file with an upper layer counts as the
 * upper's, also if only its metadata is there. */
static __always_inline const struct inode *data_inode(struct file *file)
{
	const struct inode *inode = cast_to(file, struct file)->f_inode;
	u64 overlay, dentry, layers, last;

	if (inode->i_sb->s_magic != OVERLAYFS_MAGIC || !core_type_exists(struct ovl_inode) ||
	    !core_type_exists(struct ovl_entry) || !core_type_exists(struct ovl_path))
		return inode;
	overlay = (u64)inode - core_offset(struct ovl_inode, vfs_inode);
	dentry = read_word(overlay + core_offset(struct ovl_inode, __upperdentry));
	if (!dentry) {
		layers = read_word(overlay + core_offset(struct ovl_inode, oe));
		last = read_half(layers + core_offset(struct ovl_entry, __numlower));
		if (!last)
			return inode;
		dentry = read_word(layers + core_offset(struct ovl_entry, __lowerstack) +
				   (last - 1) * core_size(struct ovl_path) +
				   core_offset(struct ovl_path, dentry));
	}
	if (!dentry)
		return inode;
	return cast_to(dentry, struct dentry)->d_inode;
}
#else
static __always_inline const struct inode *data_inode(struct file *file)
{
	const struct inode *inode = cast_to(file, struct file)->f_inode;
	const struct inode *data;

	if (ksym_exists(bpf_real_data_inode) && inode->i_sb->s_magic == OVERLAYFS_MAGIC) {
		data = cast_to(bpf_real_data_inode(file), struct inode);
		if (data)
			return data;
	}
	return inode;
}
#endif

/* conclude() about a file: its path where the hook may ask for it, else its name. */
static __always_inline int conclude_file(const struct request *request, u32 reason,
					 struct file *file)
{
#ifdef FSACCESS_CGROUP
	const struct dentry *dentry = cast_to(file, struct file)->f_path.dentry;

	return conclude(request, reason, true, NULL, (u64)dentry->d_name.name);
#else
	return conclude(request, reason, true, &file->f_path, 0);
#endif
}

#endif
