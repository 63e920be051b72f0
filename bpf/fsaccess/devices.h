/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which devices are signed: what dm-verity reports, and for how long it counts. */
#ifndef BPF_FSACCESS_DEVICES_H
#define BPF_FSACCESS_DEVICES_H

#include "state.h"
#include "../common/report.h"
#include "device_mapper.h"

/* Copies whole 64-bit words of a digest and clears what lies behind its length. */
static __always_inline void copy_digest(u8 *to, u64 address, u32 length)
{
	u64 *words = (u64 *)to;

#pragma clang loop unroll(full)
	for (u32 i = 0; i < FSACCESS_DIGEST_SIZE / 8; i++) {
		u64 word = 0;

		if (length > i * 8)
			word = cast_to(address + i * 8, struct timespec64)->tv_sec;
		if (length < i * 8 + 8 && length > i * 8) {
			/* a digest that ends within this word (SHA-1 has 20 bytes) */
			u32 unused = (i * 8 + 8 - length) * 8;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
			word = word << unused >> unused;
#else
			word = word >> unused << unused;
#endif
		}
		words[i] = word;
	}
}

/* The record of this device, made if there is none. Records are changed in place, so that taking
 * trust away never depends on an allocation. */
static __always_inline struct fsaccess_device *record_of(const struct block_device *bdev)
{
	u32 device = bdev->bd_dev;
	struct fsaccess_device *record = bpf_map_lookup_elem(&verity_devices, &device);
	struct fsaccess_device fresh = {};

	if (record && is_record_of(record, bdev))
		return record;
	fresh.first_seen = bpf_ktime_get_boot_ns();
	fresh.identity = (u64)bdev;
	fresh.diskseq = bdev->bd_disk->diskseq;
	if (bpf_map_update_elem(&verity_devices, &device, &fresh, BPF_ANY))
		bpf_map_delete_elem(&verity_devices, &device);
	return bpf_map_lookup_elem(&verity_devices, &device);
}

/* Another root hash than the one recorded means other content: what was verified no longer counts
 * until the signature is reported again. */
static __always_inline void record_root_hash(struct fsaccess_device *record, u64 value)
{
	const struct dm_verity_digest *digest;
	u8 bytes[FSACCESS_DIGEST_SIZE] __attribute__((aligned(8)));
	u64 length, differs = 0;

	if (!core_type_exists(struct dm_verity_digest))
		return;
	digest = cast_to(value, struct dm_verity_digest);
	length = digest->digest_len;
	if (length > FSACCESS_DIGEST_SIZE)
		length = 0;
	copy_digest(bytes, (u64)digest->digest, (u32)length);
#pragma clang loop unroll(full)
	for (u32 i = 0; i < FSACCESS_DIGEST_SIZE / 8; i++)
		differs |= ((u64 *)bytes)[i] ^ ((u64 *)record->digest)[i];
	if (!length || differs || record->digest_length != length)
		record->flags = 0;
	record->digest_length = (u32)length;
	__builtin_memcpy(record->digest, bytes, sizeof(bytes));
	__builtin_memset(record->algorithm, 0, sizeof(record->algorithm));
	copy_string(record->algorithm, sizeof(record->algorithm), (u64)digest->alg);
	if (length)
		record->flags |= FSACCESS_DEVICE_ROOT_HASH;
}

static __always_inline void record_signature(struct fsaccess_device *record,
					     const struct block_device *bdev, u64 value, u64 size)
{
	u32 flags = record->flags & ~(FSACCESS_DEVICE_SIGNED | FSACCESS_DEVICE_LENIENT);
	u64 target = target_of(bdev);

	record->target_type = target_type(target);
	if (value && size)
		flags |= is_strict(target, value) ? FSACCESS_DEVICE_SIGNED : FSACCESS_DEVICE_LENIENT;
	record->flags = flags;
}

/* dm-verity reports a device each time a verity table is resumed: its root hash, then the signature
 * the kernel has verified, or NULL and 0 if there is none. */
static __always_inline int note_integrity(u64 *ctx)
{
	const struct block_device *bdev = cast_to(ctx[0], struct block_device);
	struct request request = {.operation = FSACCESS_OP_VERITY, .device = bdev->bd_dev};
	struct fsaccess_device *record;
	u32 type = (u32)ctx[1];
	u64 size = ctx[3];
	u32 before;
	u64 value;

	if (type != LSM_INT_DMVERITY_ROOTHASH && type != LSM_INT_DMVERITY_SIG_VALID)
		return 0;
	/* Before 6.16 the verifier refuses a plain load of the argument `const void *value`; a cgroup's
	 * program has nothing else. */
#ifdef FSACCESS_CGROUP
	value = ctx[2];
#else
	if (bpf_get_func_arg(ctx, 2, &value))
		value = 0;
#endif
	record = record_of(bdev);
	if (!record)
		return 0;
	before = record->flags;
	record->changed = bpf_ktime_get_boot_ns();
	if (type == LSM_INT_DMVERITY_SIG_VALID)
		record_signature(record, bdev, value, size);
	else if (value && size)
		record_root_hash(record, value);
	else
		record->flags = 0;

	/* A trusted device is about to go on with something else. Trust is gone already; while the
	 * policy is in force the resume fails too, because pages of its programs that are mapped,
	 * but not read yet, would otherwise come from the new table. */
	if (armed && (before & FSACCESS_DEVICE_SIGNED) && !(record->flags & FSACCESS_DEVICE_SIGNED))
		return conclude(&request, FSACCESS_REASON_TABLE_CHANGED, true, NULL, 0);
	return 0;
}

HOOK("bdev_setintegrity")
int fsaccess_setintegrity(u64 *ctx)
{
	return ANSWER(note_integrity(ctx));
}

HOOK("bdev_free_security")
int fsaccess_bdev_free(u64 *ctx)
{
	const struct block_device *bdev = cast_to(ctx[0], struct block_device);
	u32 device = bdev->bd_dev;
	struct fsaccess_device *record = bpf_map_lookup_elem(&verity_devices, &device);

	/* Comes after a grace period: another device may have the number by now. */
	if (record && record->identity == (u64)bdev)
		bpf_map_delete_elem(&verity_devices, &device);
	return ANSWER(0);
}

#endif
