/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the owner makes is guarded from its birth on, while `guard_births` is 1.
 *
 * A map has an id, and can be opened by it, before its maker has an fd; the ids are counted up, so
 * anybody can lie in wait for the next. The next generation of a policy would be had that way before
 * it can guard itself. So its maps and programs are noted here by address, in hooks that run before
 * they have an id. The same address may serve another map later: whoever makes one there takes the
 * note out, or replaces it with his own.
 *
 * Include it before guard.h.
 */
#ifndef BPF_COMMON_BIRTHS_H
#define BPF_COMMON_BIRTHS_H

#include "state.h"

#define GUARDS_BIRTHS 1
enum { MAX_BIRTHS = 1024 };

/* Written by the owner: 1 while it makes the next generation. */
volatile u32 guard_births;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_BIRTHS);
	__type(key, u64);
	__type(value, u32);
} births SEC(".maps");

#endif
