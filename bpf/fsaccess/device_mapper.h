/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A look into device mapper's own structures. Their types are known only if dm_mod and dm_verity
 * are built in, or loaded before the policy is; where they are not known, dm-verity's word has to
 * do. Types of modules cannot be cast to (bpf_rdonly_cast takes vmlinux types), so words are read
 * at relocated offsets.
 */
#ifndef BPF_FSACCESS_DEVICE_MAPPER_H
#define BPF_FSACCESS_DEVICE_MAPPER_H

#include "state.h"

static __always_inline u32 read_half(u64 address)
{
	return (u32)read_word(address);
}

/* Is this the very device that was recorded? The address is enough while the record goes when the
 * device does; a record copied from another generation may come too late for that. */
static __always_inline bool is_record_of(const struct fsaccess_device *record,
					 const struct block_device *bdev)
{
	return record->identity == (u64)bdev && record->diskseq == bdev->bd_disk->diskseq;
}

static __always_inline bool is_device_mapper_known(void)
{
	return core_type_exists(struct mapped_device) && core_type_exists(struct dm_table) &&
	       core_type_exists(struct dm_target);
}

/* Address of the one target of the device's live table; 0 if it has not exactly one. */
static __always_inline u64 target_of(const struct block_device *bdev)
{
	u64 device, table;

	if (!is_device_mapper_known())
		return 0;
	device = (u64)bdev->bd_disk->private_data;
	table = read_word(device + core_offset(struct mapped_device, map));
	if (read_half(table + core_offset(struct dm_table, num_targets)) != 1)
		return 0;
	return read_word(table + core_offset(struct dm_table, targets));
}

/* Address of a target's struct target_type, which tells verity from linear. */
static __always_inline u64 target_type(u64 target)
{
	if (!is_device_mapper_known() || !target)
		return 0;
	return read_word(target + core_offset(struct dm_target, type));
}

/* Does this verity target return an error, or worse, for every altered block? `signature` is the
 * one just reported; that the target has it tells that it is the right one. */
static __always_inline bool is_strict(u64 target, u64 signature)
{
	u64 verity;
	u32 mode;

	if (!is_device_mapper_known() || !core_type_exists(struct dm_verity))
		return true;
	if (!target)
		return false;
	verity = read_word(target + core_offset(struct dm_target, private));
	mode = read_half(verity + core_offset(struct dm_verity, mode));
	return read_word(verity + core_offset(struct dm_verity, root_digest_sig)) == signature &&
	       read_word(verity + core_offset(struct dm_verity, validated_blocks)) == 0 &&
	       (mode == DM_VERITY_MODE_EIO || mode == DM_VERITY_MODE_RESTART ||
		mode == DM_VERITY_MODE_PANIC);
}

#endif
