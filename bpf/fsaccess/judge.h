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
	const struct super_block *sb = inode->i_sb;

	request->device = sb->s_dev;
	request->inode = inode->i_ino;
	request->magic = sb->s_magic;
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
 * judge_inode() refuses that. Sleepable programs only. */
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
