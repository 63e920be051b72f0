/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a change of the mount tree would do to the mount that holds a guarded filesystem.
 *
 * A filesystem ends with its last mount. One of its mounts is kept: the *anchor*, the oldest in the
 * mount namespace where it was guarded. (The owner may move on to a copy, as a soft reboot does: then
 * the copy is the oldest. Copies in other namespaces come and go, as they should.) From the anchor
 * the tree is climbed to its root; each mount on the way is a *holder*: with one of them the anchor
 * would go. No hook is told of what else goes along when a mount goes, so it is found out here:
 *   - unmounting a mount with children (MNT_DETACH) takes all that is below;
 *   - unmounting X from its parent P unmounts what is mounted at the same directory of P's peers
 *     and slaves; and so for each mount below X. A mount that still has children then stays, so
 *     this way a holder goes only if the anchor does.
 *
 * The kernel changes these structures under locks that are not held here. A pointer that has become
 * stale reads as something or as zero; loops are bounded, and the bound refuses.
 *
 * Loading must stay cheap. Loops are bpf_loop() and not C loops: the verifier walks each body once or
 * twice and not once a step. Each loop stands in a global function (__global): that the verifier
 * walks once a program, for any arguments, and not anew for each call in each state and each step of
 * the loops around it. (Walking such a program took 10,900 to 144,000 steps with static functions, and
 * takes 2,700 to 4,500 now.)
 */
#ifndef BPF_PINS_TREE_H
#define BPF_PINS_TREE_H

#include "state.h"

enum {
	MAX_COPIES = 1 << 16, /* mounts of one filesystem: each namespace has one */
	MAX_DEPTH = 64,       /* mounts above one another; directories in one of them */
	MAX_MASTERS = 32,
	MAX_SOURCES = 1 << 16, /* mounts from which something spreads to one */
	MAX_CHILDREN = 1 << 14,
};

/* Which of the two forms a superblock's mounts have is decided when the programs are loaded. */
#define MOUNTS_ARE_CHAINED core_field_exists(((struct mount___chain *)0)->mnt_next_for_sb)

#define MOUNT(address) cast_to(address, struct mount)
#define DENTRY(address) cast_to(address, struct dentry)

/* A member that is a pointer, as a number: that is what global functions take, and so the verifier
 * need not tell pointers by where they came from. */
#define NUMBER(type, address, member) read_word((u64)(address) + core_offset(type, member))
#define OF_MOUNT(address, member) NUMBER(struct mount, address, member)
#define OF_DENTRY(address, member) NUMBER(struct dentry, address, member)

static __always_inline u64 mount_of(u64 vfsmount)
{
	return vfsmount - core_offset(struct mount, mnt);
}

static __always_inline u64 own_mount_namespace(void)
{
	return NUMBER(struct nsproxy,
		      cast_to(bpf_get_current_task_btf(), struct task_struct)->nsproxy, mnt_ns);
}

/* ---- The anchor ---- */

struct search {
	u64 head; /* until 6.17: the list's head, where it ends */
	u64 at;
	u64 namespace;
	u64 found;
	u64 found_id;
	u64 elsewhere; /* the oldest in any namespace */
	u64 elsewhere_id;
	bool ended;
};

static long look_at_copy(u32 i __attribute__((unused)), struct search *search)
{
	u64 address = search->at;
	u64 namespace, id;

	if (!address || address == search->head) {
		search->ended = true;
		return 1;
	}
	if (MOUNTS_ARE_CHAINED) {
		search->at = NUMBER(struct mount___chain, address, mnt_next_for_sb);
	} else {
		address -= core_offset(struct mount___list, mnt_instance);
		search->at = NUMBER(struct mount___list, address, mnt_instance.next);
	}
	namespace = OF_MOUNT(address, mnt_ns);
	id = OF_MOUNT(address, mnt_id_unique);
	if (!namespace)
		return 0; /* unmounted, but still in use */
	if (namespace == search->namespace && id < search->found_id) {
		search->found = address;
		search->found_id = id;
	}
	if (id < search->elsewhere_id) {
		search->elsewhere = address;
		search->elsewhere_id = id;
	}
	return 0;
}

/* The mount that keeps a guarded filesystem; 0: there is none. */
__global u64 find_anchor(u64 superblock, u64 namespace)
{
	struct search search = {.namespace = namespace, .found_id = ~0ULL, .elsewhere_id = ~0ULL};

	if (MOUNTS_ARE_CHAINED) {
		search.at = NUMBER(struct super_block___chain, superblock, s_mounts);
	} else {
		search.head = superblock + core_offset(struct super_block___list, s_mounts);
		search.at = NUMBER(struct super_block___list, superblock, s_mounts.next);
	}
	bpf_loop(MAX_COPIES, look_at_copy, &search, 0);
	/* More copies than are looked at: one that is older than any that was seen may have been
	 * missed, so what was found is not the answer. On a kernel whose list begins with the oldest
	 * it is. */
	if (!search.ended && !search.head)
		return 0;
	return search.found ?: search.elsewhere;
}

/* ---- Questions about a change ---- */

enum question {
	ASK_HOLDERS = 1 << 0, /* is the mount a holder? */
	ASK_SPREAD = 1 << 1,  /* does unmounting the mount elsewhere unmount the anchor? */
	ASK_COVERS = 1 << 2,  /* does something mounted there hide the anchor? */
	ASK_WAY = 1 << 3,     /* is the directory on the way to the anchor? */
	ASK_REACH = 1 << 4,   /* is there in the namespace a mount from which unmounting spreads? */
};
struct steps {
	u64 at;
	u64 wanted; /* found: the answer is yes */
	u64 last;   /* the answer is no above it */
	int group;  /* or this peer group */
	bool no;
};

static long step_to_master(u32 i __attribute__((unused)), struct steps *steps)
{
	if (steps->at == steps->wanted)
		return 1;
	if (steps->group && MOUNT(steps->at)->mnt_group_id == steps->group)
		return 1;
	steps->at = OF_MOUNT(steps->at, mnt_master);
	steps->no = !steps->at;
	return steps->no;
}

/* Does what happens in mount `from` happen in mount `to` as well? */
__global bool reaches(u64 from, u64 to)
{
	struct steps steps = {.at = to, .wanted = from, .group = MOUNT(from)->mnt_group_id};

	bpf_loop(MAX_MASTERS, step_to_master, &steps, 0);
	return !steps.no;
}

static long step_to_directory(u32 i __attribute__((unused)), struct steps *steps)
{
	u64 parent;

	if (steps->at == steps->wanted)
		return 1;
	parent = OF_DENTRY(steps->at, d_parent);
	steps->no = steps->at == steps->last || steps->at == parent;
	steps->at = parent;
	return steps->no;
}

/* Is `wanted` the directory `dentry`, or one above it up to the root of its mount? */
__global bool is_on_way(u64 dentry, u64 wanted, u64 root)
{
	struct steps steps = {.at = dentry, .wanted = wanted, .last = root};

	bpf_loop(MAX_DEPTH, step_to_directory, &steps, 0);
	return !steps.no;
}

static long step_to_mount(u32 i __attribute__((unused)), struct steps *steps)
{
	u64 parent;

	if (steps->at == steps->wanted)
		return 1;
	parent = OF_MOUNT(steps->at, mnt_parent);
	steps->no = steps->at == parent;
	steps->at = parent;
	return steps->no;
}

/* Is `above` the mount `mount`, or one that it is below of? */
__global bool is_below(u64 mount, u64 above)
{
	struct steps steps = {.at = mount, .wanted = above};

	bpf_loop(MAX_DEPTH, step_to_mount, &steps, 0);
	return !steps.no;
}

struct children {
	u64 at;
	u64 head; /* of the list, where it ends */
	u64 point;
	u32 reason;
};

static long look_at_child(u32 i __attribute__((unused)), struct children *children)
{
	u64 child;

	if (children->at == children->head) {
		children->reason = PINS_REASON_NONE;
		return 1;
	}
	child = children->at - core_offset(struct mount, mnt_child);
	if (OF_MOUNT(child, mnt_mountpoint) == children->point) {
		children->reason = PINS_REASON_PROPAGATION;
		return 1;
	}
	children->at = OF_MOUNT(child, mnt_child.next);
	return 0;
}

/* Is something mounted on the directory `point` of this mount? */
__global u32 ask_children(u64 mount, u64 point)
{
	struct children children = {
		.at = OF_MOUNT(mount, mnt_mounts.next),
		.head = mount + core_offset(struct mount, mnt_mounts),
		.point = point,
		.reason = PINS_REASON_TOO_MANY,
	};

	bpf_loop(MAX_CHILDREN, look_at_child, &children, 0);
	return children.reason;
}

struct sources {
	u64 at;
	u64 first; /* of the peer group that is looked at */
	u64 point;
	u64 above;
	u64 namespace;
	u32 reason;
};

/* The members of a peer group, then those of its master. */
static long look_at_source(u32 i __attribute__((unused)), struct sources *sources)
{
	u64 mount = sources->at;
	u32 reason;

	if (sources->namespace && OF_MOUNT(mount, mnt_ns) == sources->namespace) {
		sources->reason = PINS_REASON_RACE;
		return 1;
	}
	if (sources->above && is_below(mount, sources->above)) {
		reason = ask_children(mount, sources->point);
		if (reason) {
			sources->reason = reason;
			return 1;
		}
	}
	sources->at = OF_MOUNT(mount, mnt_share.next) - core_offset(struct mount, mnt_share);
	if (sources->at != sources->first)
		return 0;
	sources->at = sources->first = OF_MOUNT(sources->first, mnt_master);
	if (sources->at)
		return 0;
	sources->reason = PINS_REASON_NONE;
	return 1;
}

/* Every mount from which something spreads to `parent`: is it in the namespace, or is it below what
 * goes (`above`) and has something mounted at `point`? 0 asks neither. */
__global u32 ask_sources(u64 parent, u64 point, u64 above, u64 namespace)
{
	struct sources sources = {
		.at = parent,
		.first = parent,
		.point = point,
		.above = above,
		.namespace = namespace,
		.reason = PINS_REASON_TOO_MANY,
	};

	bpf_loop(MAX_SOURCES, look_at_source, &sources, 0);
	return sources.reason;
}

/* What is asked of each holder, with `parent` and `point`, the directory in it on which the holder is
 * mounted. */
struct climb {
	u64 at;     /* a holder */
	u64 mount;  /* what is asked about */
	u64 dentry; /* ASK_COVERS, ASK_WAY: the directory in it */
	u32 questions;
	u32 reason;
	bool ended; /* the root was reached */
};

/* ASK_SPREAD and ASK_REACH, which matter to the anchor alone. */
__global u32 ask_spread(u32 questions, u64 mount, u64 parent, u64 point)
{
	bool has_children = OF_MOUNT(mount, mnt_mounts.next) !=
			    mount + core_offset(struct mount, mnt_mounts);

	if (!(questions & ASK_SPREAD))
		return 0;
	if (OF_MOUNT(mount, mnt_mountpoint) == point &&
	    reaches(OF_MOUNT(mount, mnt_parent), parent))
		return PINS_REASON_PROPAGATION;
	if (!has_children && !(questions & ASK_REACH))
		return 0;
	return ask_sources(parent, point, has_children ? mount : 0,
			   questions & ASK_REACH ? own_mount_namespace() : 0);
}

/* Being a holder is told before anything else that was found on the way. */
static long look_at_holder(u32 i, struct climb *climb)
{
	u64 parent = OF_MOUNT(climb->at, mnt_parent);
	u64 point = OF_MOUNT(climb->at, mnt_mountpoint);
	u32 questions = climb->questions;

	climb->ended = parent == climb->at;
	if (questions & ASK_HOLDERS && climb->at == climb->mount) {
		climb->reason = i ? PINS_REASON_ANCESTOR : PINS_REASON_MOUNT;
		return 1;
	}
	if (questions & ASK_COVERS && !i && reaches(climb->mount, climb->at))
		climb->reason = PINS_REASON_COVERS;
	if (climb->ended)
		return 1;
	if (!climb->reason) {
		if (questions & (ASK_COVERS | ASK_WAY)) {
			if (is_on_way(point, climb->dentry, OF_MOUNT(parent, mnt.mnt_root)) &&
			    (questions & ASK_WAY || reaches(climb->mount, parent)))
				climb->reason = questions & ASK_WAY ? PINS_REASON_MOUNT_POINT
								    : PINS_REASON_COVERS;
		} else if (!i) {
			climb->reason = ask_spread(questions, climb->mount, parent, point);
		}
	}
	climb->at = parent;
	return 0;
}

struct asked {
	u64 mount;
	u64 dentry;
	u32 questions;
};

/* The questions, asked of one guarded filesystem: 0, or the reason to refuse. (What a global function
 * finds in memory is numbers to it, whatever pointers were put there.) */
__global u32 ask_filesystem(u32 number, const struct asked *asked)
{
	struct climb climb = {};
	u64 superblock;

	if (number >= PINS_MAX_FILESYSTEMS || !asked)
		return PINS_REASON_TOO_MANY; /* never so */
	superblock = guarded[number].superblock;
	if (!superblock)
		return 0;
	climb.questions = asked->questions;
	climb.mount = asked->mount;
	climb.dentry = asked->dentry;
	climb.at = find_anchor(superblock, guarded[number].namespace);
	if (climb.at)
		bpf_loop(MAX_DEPTH, look_at_holder, &climb, 0);
	if (!climb.ended && !climb.reason)
		return PINS_REASON_TOO_MANY;
	return climb.reason;
}

/* The same, asked of all. */
static __always_inline u32 ask(u32 questions, u64 mount, u64 dentry)
{
	struct asked asked = {.questions = questions, .mount = mount, .dentry = dentry};
	u32 reason = 0;

	for (u32 i = 0; i < PINS_MAX_FILESYSTEMS && !reason; i++)
		reason = ask_filesystem(i, &asked);
	return reason;
}

/* Is `mount` the anchor of a guarded filesystem? */
static __always_inline bool is_anchor(u64 mount)
{
	return ask(ASK_HOLDERS, mount, 0) == PINS_REASON_MOUNT;
}

#endif
