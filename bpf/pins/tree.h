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
 */
#ifndef BPF_PINS_TREE_H
#define BPF_PINS_TREE_H

#include "state.h"

enum {
	MAX_COPIES = 1 << 16, /* mounts of one filesystem: each namespace has one */
	MAX_DEPTH = 64,       /* mounts above one another; directories in one of them */
	MAX_MASTERS = 32,
	MAX_PEERS = 1 << 14,
	MAX_CHILDREN = 1 << 14,
};

/* Which of the two forms a superblock's mounts have is decided when the programs are loaded. */
#define MOUNTS_ARE_CHAINED core_field_exists(((struct mount___chain *)0)->mnt_next_for_sb)

#define MOUNT(address) cast_to(address, struct mount)
#define DENTRY(address) cast_to(address, struct dentry)

static __always_inline u64 mount_of(u64 vfsmount)
{
	return vfsmount - core_offset(struct mount, mnt);
}

static __always_inline u64 own_mount_namespace(void)
{
	return (u64)cast_to(bpf_get_current_task_btf(), struct task_struct)->nsproxy->mnt_ns;
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
	const struct mount *mount;
	u64 address = search->at;
	u64 namespace, id;

	if (!address || address == search->head) {
		search->ended = true;
		return 1;
	}
	if (MOUNTS_ARE_CHAINED) {
		search->at = (u64)cast_to(address, struct mount___chain)->mnt_next_for_sb;
	} else {
		address -= core_offset(struct mount___list, mnt_instance);
		search->at = (u64)cast_to(address, struct mount___list)->mnt_instance.next;
	}
	mount = MOUNT(address);
	namespace = (u64)mount->mnt_ns;
	id = mount->mnt_id_unique;
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
static __noinline u64 find_anchor(u64 superblock, u64 namespace)
{
	struct search search = {.namespace = namespace, .found_id = ~0ULL, .elsewhere_id = ~0ULL};

	if (MOUNTS_ARE_CHAINED) {
		search.at = (u64)cast_to(superblock, struct super_block___chain)->s_mounts;
	} else {
		search.head = superblock + core_offset(struct super_block___list, s_mounts);
		search.at = (u64)cast_to(superblock, struct super_block___list)->s_mounts.next;
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

struct climb {
	u64 at;     /* a holder */
	u64 mount;  /* what is asked about */
	u64 dentry; /* ASK_COVERS, ASK_WAY: the directory in it */
	u64 mount_parent;
	u64 mount_point;
	u64 namespace; /* ASK_REACH */
	u64 parent;    /* of the holder */
	u64 point;     /* the directory in its parent on which the holder is mounted */
	u64 master;
	u64 ring;
	u64 peer;
	u64 child;
	u32 questions;
	u32 reason;
	bool ended;  /* the root was reached */
	bool looked; /* an inner loop ended by itself */
	bool with_children;
};

/* Climbing is done by bpf_loop and not by C loops: the verifier walks each body once or twice and not
 * once a step. */
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
	steps->at = (u64)MOUNT(steps->at)->mnt_master;
	steps->no = !steps->at;
	return steps->no;
}

/* Does what happens in mount `from` happen in mount `to` as well? */
static __noinline bool reaches(u64 from, u64 to)
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
	parent = (u64)DENTRY(steps->at)->d_parent;
	steps->no = steps->at == steps->last || steps->at == parent;
	steps->at = parent;
	return steps->no;
}

/* Is `wanted` the directory `dentry`, or one above it up to the root of its mount? */
static __noinline bool is_on_way(u64 dentry, u64 wanted, u64 root)
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
	parent = (u64)MOUNT(steps->at)->mnt_parent;
	steps->no = steps->at == parent;
	steps->at = parent;
	return steps->no;
}

/* Is `above` the mount `mount`, or one that it is below of? */
static __noinline bool is_below(u64 mount, u64 above)
{
	struct steps steps = {.at = mount, .wanted = above};

	bpf_loop(MAX_DEPTH, step_to_mount, &steps, 0);
	return !steps.no;
}

static long look_at_child(u32 i __attribute__((unused)), struct climb *climb)
{
	u64 head = climb->peer + core_offset(struct mount, mnt_mounts);
	u64 child;

	if (climb->child == head) {
		climb->looked = true;
		return 1;
	}
	child = climb->child - core_offset(struct mount, mnt_child);
	if ((u64)MOUNT(child)->mnt_mountpoint == climb->point) {
		climb->looked = true;
		climb->reason = PINS_REASON_PROPAGATION;
		return 1;
	}
	climb->child = (u64)MOUNT(child)->mnt_child.next;
	return 0;
}

/* A mount in which unmounting something at `point` unmounts the holder: is it below what goes, and
 * is something mounted there? */
static long look_at_peer(u32 i, struct climb *climb)
{
	if (i && climb->peer == climb->ring) {
		climb->looked = true;
		return 1;
	}
	if (climb->questions & ASK_REACH && (u64)MOUNT(climb->peer)->mnt_ns == climb->namespace) {
		climb->reason = PINS_REASON_RACE;
		return 1;
	}
	if (climb->with_children && is_below(climb->peer, climb->mount)) {
		climb->looked = false;
		climb->child = (u64)MOUNT(climb->peer)->mnt_mounts.next;
		bpf_loop(MAX_CHILDREN, look_at_child, climb, 0);
		if (!climb->looked)
			climb->reason = PINS_REASON_TOO_MANY;
		climb->looked = false;
		if (climb->reason)
			return 1;
	}
	climb->peer = (u64)MOUNT(climb->peer)->mnt_share.next -
		      core_offset(struct mount, mnt_share);
	return 0;
}

static long look_at_master(u32 i __attribute__((unused)), struct climb *climb)
{
	climb->ring = climb->peer = climb->master;
	climb->looked = false;
	bpf_loop(MAX_PEERS, look_at_peer, climb, 0);
	if (!climb->reason && !climb->looked)
		climb->reason = PINS_REASON_TOO_MANY;
	if (climb->reason)
		return 1;
	climb->looked = false;
	climb->master = (u64)MOUNT(climb->master)->mnt_master;
	if (!climb->master) {
		climb->looked = true;
		return 1;
	}
	return 0;
}

/* Every mount from which something spreads to the holder's parent, one after the other. */
static __noinline void look_at_sources(struct climb *climb)
{
	if (!climb)
		return;
	climb->master = climb->parent;
	climb->looked = false;
	bpf_loop(MAX_MASTERS, look_at_master, climb, 0);
	if (!climb->reason && !climb->looked)
		climb->reason = PINS_REASON_TOO_MANY;
}

/* Being a holder is told before anything else that was found on the way. */
static long look_at_holder(u32 i, struct climb *climb)
{
	const struct mount *holder = MOUNT(climb->at);
	u32 questions = climb->questions;

	climb->parent = (u64)holder->mnt_parent;
	climb->point = (u64)holder->mnt_mountpoint;
	climb->ended = climb->parent == climb->at;
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
			if (is_on_way(climb->point, climb->dentry,
				      (u64)MOUNT(climb->parent)->mnt.mnt_root) &&
			    (questions & ASK_WAY || reaches(climb->mount, climb->parent)))
				climb->reason = questions & ASK_WAY ? PINS_REASON_MOUNT_POINT
								    : PINS_REASON_COVERS;
		} else if (i) {
			; /* spreading matters to the anchor alone */
		} else if (questions & ASK_SPREAD && climb->mount_point == climb->point &&
			   reaches(climb->mount_parent, climb->parent)) {
			climb->reason = PINS_REASON_PROPAGATION;
		} else if (climb->with_children || questions & ASK_REACH) {
			look_at_sources(climb);
		}
	}
	climb->at = climb->parent;
	return 0;
}

static long look_at_filesystem(u32 i, struct climb *climb)
{
	u64 superblock;

	if (i >= PINS_MAX_FILESYSTEMS)
		return 1;
	superblock = guarded[i].superblock;
	if (!superblock)
		return 0;
	climb->ended = false;
	climb->at = find_anchor(superblock, guarded[i].namespace);
	if (climb->at)
		bpf_loop(MAX_DEPTH, look_at_holder, climb, 0);
	if (!climb->ended && !climb->reason)
		climb->reason = PINS_REASON_TOO_MANY;
	return !!climb->reason;
}

/* The questions, asked of each guarded filesystem: 0, or the reason to refuse. */
static __always_inline u32 ask(u32 questions, u64 mount, u64 dentry)
{
	struct climb climb = {.questions = questions, .mount = mount, .dentry = dentry};

	if (questions & ASK_REACH)
		climb.namespace = own_mount_namespace();
	if (questions & ASK_SPREAD) {
		climb.mount_parent = (u64)MOUNT(mount)->mnt_parent;
		climb.mount_point = (u64)MOUNT(mount)->mnt_mountpoint;
		climb.with_children = (u64)MOUNT(mount)->mnt_mounts.next !=
				      mount + core_offset(struct mount, mnt_mounts);
	}
	bpf_loop(PINS_MAX_FILESYSTEMS, look_at_filesystem, &climb, 0);
	return climb.reason;
}

/* Is `mount` the anchor of a guarded filesystem? */
static __always_inline bool is_anchor(u64 mount)
{
	return ask(ASK_HOLDERS, mount, 0) == PINS_REASON_MOUNT;
}

#endif
