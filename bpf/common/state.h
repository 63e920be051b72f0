/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * State that every policy has: the switch, the guard's ids, counters, events.
 *
 * Before it includes this a policy defines
 *   THIS_POLICY     its enum policy_number
 *   OWN(name)       a name of its own header's, which has the ones below
 */
#ifndef BPF_COMMON_STATE_H
#define BPF_COMMON_STATE_H

#include "../include/bpf.h"
#include "../include/kernel.h"
#include "../include/policy.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the policies read parts of words, and were never run on a big-endian machine"
#endif

enum {
	OPERATIONS = OWN(OP_COUNT),
	EVENTS_SIZE = OWN(EVENTS_SIZE), /* bytes of the ring buffer, a power of two */

	/* What the guard refuses, and why. */
	OP_BPF_MAP = OWN(OP_BPF_MAP),
	OP_BPF_PROGRAM = OWN(OP_BPF_PROGRAM),
	OP_BPF_LINK = OWN(OP_BPF_LINK),
	OP_PTRACE = OWN(OP_PTRACE),
	REASON_GUARD_MAP = OWN(REASON_GUARD_MAP),
	REASON_GUARD_PROGRAM = OWN(REASON_GUARD_PROGRAM),
	REASON_GUARD_LINK = OWN(REASON_GUARD_LINK),
	REASON_PTRACE_OWNER = OWN(REASON_PTRACE_OWNER),
};

enum {
	EPERM = 1,

	PTRACE_MODE_ATTACH = 0x02,  /* include/linux/ptrace.h */
	BPF_LINK_GET_FD_BY_ID = 30, /* enum bpf_cmd */
	BPF_COMMAND = 0xffff,       /* the bits of a command that are not flags */

	/* /proc/PID/stat counts a process' start in these (USER_HZ is 100 wherever BPF runs). */
	NS_PER_CLOCK_TICK = 10000000,
};

/* ---- Fixed when the object is loaded (.rodata) ---- */

/* Of the policy as a whole, object and settings: an upgrade refuses a lower one. */
const volatile u32 policy_version = 1;

/* ---- Written by the owner (.bss) ---- */

/* 0: every hook allows. 1: the policy is in force. */
volatile u32 armed;
/* 1: what the policy would deny is reported and allowed. The guard is not softened. */
volatile u32 audit;
/* The process that may have fds to the objects below: tgid in the initial pid namespace, and unless
 * it is 1 its start time in clock ticks since boot (field 22 of /proc/PID/stat), because a tgid is
 * reused. tgid 0: nobody. */
volatile u32 owner_tgid;
volatile u64 owner_start_ticks;
/* A second process with the owner's rights, appointed by the owner: one that upgrades the policy may
 * be killed meanwhile, and the policy must not be left without an owner then. */
volatile u32 deputy_tgid;
volatile u64 deputy_start_ticks;
/* How many times the policy was replaced by a next generation since boot, counted from 1; 0: it is
 * kept by its owner's fds and not replaced. */
volatile u32 generation;
/* enum policy_keep: what keeps it attached. Only told, never obeyed. */
volatile u32 kept;
/* Ids the kernel gave to our maps, programs and links; 0 is an empty entry. */
volatile u32 guard_map_ids[POLICY_MAX_MAPS];
volatile u32 guard_program_ids[POLICY_MAX_PROGRAMS];
volatile u32 guard_link_ids[POLICY_MAX_LINKS];

/* ---- Maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPERATIONS);
	__type(key, u32);
	__type(value, struct policy_counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_SIZE);
} events SEC(".maps");

#endif
