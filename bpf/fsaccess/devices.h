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
			word = read_word(address + i * 8);
		if (length < i * 8 + 8 && length > i * 8) {
			/* a digest that ends within this word (SHA-1 has 20 bytes) */
			u32 unused = (i * 8 + 8 - length) * 8;
			word = word << unused >> unused;
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

/* Takes a device's trust away, and answers the resume. What a device was trusted for while the policy
 * is in force is what it is held to: pages of its programs that are mapped, but not read yet, would
 * otherwise come from the new table. The kernel leaves that table in place, suspended, so each
 * further resume is refused too. */
static __noinline int withdraw(struct fsaccess_device *record, const struct block_device *bdev)
{
	struct request request = {.operation = FSACCESS_OP_VERITY, .device = bdev->bd_dev};
	bool held = armed && record->flags & (FSACCESS_DEVICE_SIGNED | FSACCESS_DEVICE_HELD);
	int answer;

	record->flags &= FSACCESS_DEVICE_ROOT_HASH;
	answer = held ? conclude(&request, FSACCESS_REASON_TABLE_CHANGED, true, NULL, 0) : 0;
	if (answer)
		record->flags |= FSACCESS_DEVICE_HELD;
	return answer;
}

/* Another root hash than the one recorded means other content: what was verified no longer counts
 * until the signature is reported again. The record of a device that is held stays. */
static __always_inline int record_root_hash(struct fsaccess_device *record,
					    const struct block_device *bdev, u64 value)
{
	const struct dm_verity_digest *digest;
	u8 bytes[FSACCESS_DIGEST_SIZE] __attribute__((aligned(8)));
	u64 length, differs = 0;

	if (!core_type_exists(struct dm_verity_digest))
		return 0;
	digest = cast_to(value, struct dm_verity_digest);
	length = digest->digest_len;
	if (length > FSACCESS_DIGEST_SIZE)
		length = 0;
	copy_digest(bytes, (u64)digest->digest, (u32)length);
#pragma clang loop unroll(full)
	for (u32 i = 0; i < FSACCESS_DIGEST_SIZE / 8; i++)
		differs |= ((u64 *)bytes)[i] ^ ((u64 *)record->digest)[i];
	if ((!length || differs || record->digest_length != length) && withdraw(record, bdev))
		return -EPERM;
	record->digest_length = (u32)length;
	__builtin_memcpy(record->digest, bytes, sizeof(bytes));
	__builtin_memset(record->algorithm, 0, sizeof(record->algorithm));
	copy_string(record->algorithm, sizeof(record->algorithm), (u64)digest->alg);
	if (length)
		record->flags |= FSACCESS_DEVICE_ROOT_HASH;
	else
		record->flags &= ~FSACCESS_DEVICE_ROOT_HASH;
	return 0;
}

static __always_inline int record_signature(struct fsaccess_device *record,
					    const struct block_device *bdev, u64 value, u64 size)
{
	u64 target = target_of(bdev);
	int answer;

	record->target_type = target_type(target);
	if (value && size && is_strict(target, value)) {
		record->flags &= FSACCESS_DEVICE_ROOT_HASH;
		record->flags |= FSACCESS_DEVICE_SIGNED;
		return 0;
	}
	answer = withdraw(record, bdev);
	if (value && size)
		record->flags |= FSACCESS_DEVICE_LENIENT;
	return answer;
}

/* dm-verity reports a device each time a verity table is resumed: its root hash, then the signature
 * the kernel has verified, or NULL and 0 if there is none. After a refusal it takes the root hash
 * back (NULL and 0, too). */
static __always_inline int note_integrity(u64 *ctx)
{
	const struct block_device *bdev = cast_to(ctx[0], struct block_device);
	struct fsaccess_device *record;
	u32 type = (u32)ctx[1];
	u64 size = ctx[3];
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
	record->changed = bpf_ktime_get_boot_ns();
	if (type == LSM_INT_DMVERITY_SIG_VALID)
		return record_signature(record, bdev, value, size);
	if (value && size)
		return record_root_hash(record, bdev, value);
	return record->flags & FSACCESS_DEVICE_HELD ? 0 : withdraw(record, bdev);
}

SEC(LSM "bdev_setintegrity")
int fsaccess_setintegrity(u64 *ctx)
{
	return ANSWER(note_integrity(ctx));
}

SEC(LSM "bdev_free_security")
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
