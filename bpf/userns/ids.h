/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ids of the namespace's that a file can hold beside its owner's: named entries of an ACL, and the
 * root of file capabilities. The hooks know no mount, so the list of mounts does not count here, but
 * they see the ids as they will be stored, after an idmapped mount has had its say.
 */
#ifndef BPF_USERNS_IDS_H
#define BPF_USERNS_IDS_H

#include "judge.h"

/* Is this one of the ids that the namespace was given? More extents than fit in place are behind a
 * pointer; where there are so many, every id counts as one of them. */
static __noinline bool is_given(u64 map_address, u32 id)
{
	const struct uid_gid_map *map = cast_to(map_address, struct uid_gid_map);

	if (map->nr_extents > EXTENTS_IN_PLACE)
		return true;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < EXTENTS_IN_PLACE; i++)
		if (i < map->nr_extents && id - map->extent[i].lower_first < map->extent[i].count)
			return true;
	return false;
}

struct acl_walk {
	u64 entries;
	u64 uids;
	u64 gids;
	bool named;
};

static long look_at_entry(u32 i, struct acl_walk *walk)
{
	u64 entry = read_word(walk->entries + i * sizeof(struct posix_acl_entry));
	u32 id = (u32)(entry >> 32);

	switch (entry & 0xffff) {
	case ACL_USER:
		walk->named = is_given(walk->uids, id);
		break;
	case ACL_GROUP:
		walk->named = is_given(walk->gids, id);
		break;
	}
	return walk->named;
}

static __always_inline bool names_given_ids(u64 acl, u64 managed)
{
	struct acl_walk walk = {
		.entries = acl + core_offset(struct posix_acl, a_entries),
		.uids = managed + core_offset(struct user_namespace, uid_map),
		.gids = managed + core_offset(struct user_namespace, gid_map),
	};
	u32 count = cast_to(acl, struct posix_acl)->a_count;

	if (count > ACL_MOST)
		return true;
	bpf_loop(count, look_at_entry, &walk, 0);
	return walk.named;
}

/* What reads as zero where it cannot be read: a name that is not there is not this one. */
static __always_inline bool is_capability(u64 name)
{
	static const char wanted[] = "security.capability";
	char found[sizeof(wanted) + 1] = {};

	if (copy_string(found, sizeof(found), name) != sizeof(wanted) - 1)
		return false;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < sizeof(wanted); i++)
		if (found[i] != wanted[i])
			return false;
	return true;
}

#endif
