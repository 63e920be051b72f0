/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * pins: a bpf filesystem whose policies nobody but the owner can unload, privileged or not.
 *
 * A pinned link keeps its program attached as long as its pin lives; the pin lives until it is
 * unlinked or its filesystem ends, and that ends with its last mount. So there is something to
 * guard at the files (files.h), at the mounts (mounts.h, tree.h) and at the objects themselves
 * (objects.h). The filesystem is known by its superblock, not by a path.
 *
 * Nothing is refused until `armed` is 1. No bpf_probe_read helper is used (lockdown=confidentiality
 * forbids them): members are read by direct loads through pointers that the verifier does not trust;
 * a bad address reads as zero.
 */
#include "include/bpf.h"
#include "include/pins.h"
#include "include/kernel.h"

#include "pins/kernel.h"
#include "pins/state.h"
#include "pins/tree.h"
#include "pins/judge.h"
#include "pins/files.h"
#include "pins/mounts.h"
#include "pins/objects.h"
#include "pins/status.h"

LICENSE("Dual BSD/GPL");
