/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fsaccess: only code from signed dm-verity devices executes, and from the initramfs as long as the
 * trust window is open.
 *
 * How it is put together:
 *   - dm-verity reports each device through bdev_setintegrity; verity_devices remembers it until
 *     bdev_free_security. No user-space program adds a device.
 *   - judge() is the one decision. The hooks gather what it needs and hand it over; conclude()
 *     counts, reports and turns a reason into a return value.
 *   - Nothing is refused until `armed` is 1, so there is no half-attached state.
 *   - The guard gives nobody but the owner an fd to our maps, programs and links.
 *
 * No bpf_probe_read helper is used, so that this works under lockdown=confidentiality. Every struct
 * member is read by a direct load through a pointer that the verifier does not trust, which makes
 * the JIT add an exception table entry: a bad pointer reads as zero. Zero is always the answer that
 * denies (no superblock, no regular file, no device), so a fault cannot grant anything.
 */
#include "include/bpf.h"
#include "include/fsaccess.h"
#include "include/kernel.h"

LICENSE("Dual BSD/GPL");

enum {
	EPERM = 1,

	PROT_WRITE = 0x2,
	PROT_EXEC = 0x4,
	VM_EXEC = 0x4,

	S_IFMT = 0170000,
	S_IFREG = 0100000,

	PTRACE_MODE_ATTACH = 0x02, /* include/linux/ptrace.h */
	BPF_LINK_GET_FD_BY_ID = 30, /* enum bpf_cmd */

	/* /proc/PID/stat counts a process' start in these (USER_HZ is 100 wherever BPF runs). */
	NS_PER_CLOCK_TICK = 10000000,
};

/* Superblock magic numbers (include/uapi/linux/magic.h and the filesystems' own sources). */
#define RAMFS_MAGIC 0x858458f6
#define TMPFS_MAGIC 0x01021994
#define OVERLAYFS_MAGIC 0x794c7630
#define FUSE_MAGIC 0x65735546
#define BTRFS_MAGIC 0x9123683e
#define EROFS_MAGIC 0xe0f5e1e2
#define SQUASHFS_MAGIC 0x73717368

/* ---- Settings, fixed when the object is loaded (.rodata) ---- */

/* Filesystem types whose files can be trusted; 0 is an empty entry. A filesystem
 * belongs here only if what it serves comes from its block device alone. fuse and btrfs do not
 * (daemon; several devices) and are refused even if listed. */
const volatile u32 filesystem_magics[FSACCESS_MAX_FILESYSTEMS] = {EROFS_MAGIC, SQUASHFS_MAGIC};

/* 1: nobody attaches to any other process (ends debuggers; a traced process' code can be
 * rewritten). 0: only the owner is protected. */
const volatile u32 deny_ptrace = 0;

/* ---- State, written by the owner (.bss) ---- */

/* 0: every hook allows (devices are recorded nevertheless). 1: the policy is in force. */
volatile u32 armed;
/* 1: what the policy on code would deny is reported and allowed. The guard is not softened. */
volatile u32 audit;
/* s_dev of the initramfs while its files are trusted, else 0. */
volatile u32 initramfs_dev;
/* The process that may have fds to the objects below: tgid in the initial pid namespace, and unless
 * it is 1 its start time in clock ticks since boot (field 22 of /proc/PID/stat), because a tgid is
 * reused. tgid 0: nobody. */
volatile u32 owner_tgid;
volatile u64 owner_start_ticks;
/* Ids the kernel gave to our maps, programs and links; 0 is an empty entry. */
volatile u32 guard_map_ids[FSACCESS_MAX_MAPS];
volatile u32 guard_program_ids[FSACCESS_MAX_PROGRAMS];
volatile u32 guard_link_ids[FSACCESS_MAX_LINKS];

/* ---- Maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, FSACCESS_MAX_DEVICES);
	__type(key, u32);
	__type(value, struct fsaccess_device);
} verity_devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FSACCESS_OP_COUNT);
	__type(key, u32);
	__type(value, struct fsaccess_counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FSACCESS_EVENTS_SIZE);
} events SEC(".maps");

/* ---- Reading kernel memory ---- */

/* Copies a NUL-terminated kernel string of at most size - 1 (and 63) bytes; returns its length.
 * Loops are unrolled because the verifier wants constant offsets into a kernel type. */
static __noinline u32 copy_string(char *to, u32 size, u64 address)
{
	const struct new_utsname *bytes = cast_to(address, struct new_utsname);
	u32 length = 0;

#pragma clang loop unroll(full)
	for (u32 i = 0; i < 63; i++) {
		char byte = bytes->sysname[i];

		if (i + 1 >= size || !byte)
			break;
		to[i] = byte;
		length = i + 1;
	}
	return length;
}

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

/* ---- Decision ---- */

/* What a hook asks, and what it found out on the way. */
struct request {
	enum fsaccess_operation operation;
	u32 prot;
	u64 flags;
	u32 object;
	u32 device;
	u64 inode;
	u64 magic;
};

static __always_inline bool is_listed_filesystem(u64 magic)
{
	if (magic == FUSE_MAGIC || magic == BTRFS_MAGIC)
		return false;
	for (u32 i = 0; i < FSACCESS_MAX_FILESYSTEMS; i++)
		if (filesystem_magics[i] && magic == filesystem_magics[i])
			return true;
	return false;
}

/* Is what this inode holds trusted code? `inode` hosts the data: overlayfs is already resolved. */
static __always_inline enum fsaccess_reason judge_inode(struct request *request,
							const struct inode *inode)
{
	const struct super_block *sb = inode->i_sb;
	const struct block_device *bdev = sb->s_bdev;
	const struct fsaccess_device *record;
	u64 magic = sb->s_magic;
	u32 window, device;

	request->device = sb->s_dev;
	request->inode = inode->i_ino;
	request->magic = magic;

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
	if (!record || record->identity != (u64)bdev)
		return FSACCESS_REASON_UNTRUSTED_DEVICE;
	if (!(record->flags & FSACCESS_DEVICE_SIGNED))
		return FSACCESS_REASON_UNSIGNED_DEVICE;
	return FSACCESS_REASON_NONE;
}

/* The decision about memory or a file that is to be executed. `inode` is NULL for anonymous
 * memory; `modified` says that the mapping may hold pages that were written. */
static __always_inline enum fsaccess_reason judge(struct request *request,
						  const struct inode *inode, bool modified)
{
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

/* ---- Verdict, counters, events ---- */

static __noinline void fill_event(struct fsaccess_event *event, const struct request *request,
				  enum fsaccess_reason reason, enum fsaccess_verdict verdict)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();

	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_boot_ns();
	event->operation = request->operation;
	event->reason = reason;
	event->verdict = verdict;
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->uid = (u32)bpf_get_current_uid_gid();
	event->cgroup = bpf_get_current_cgroup_id();
	event->inode = request->inode;
	event->magic = request->magic;
	event->device = request->device;
	event->prot = request->prot;
	event->flags = request->flags;
	event->object = request->object;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

/* Counts, reports and answers. `path` needs a hook in which bpf_d_path is allowed (a sleepable
 * one); `name` is the address of a file's last component for the hooks that are not; either may be
 * NULL or 0. The event is left out, and counted, when the ring buffer is full: nobody waits. */
static __always_inline int conclude(const struct request *request, enum fsaccess_reason reason,
				    bool auditable, const struct path *path, u64 name)
{
	enum fsaccess_verdict verdict = auditable && audit ? FSACCESS_AUDITED : FSACCESS_DENIED;
	int answer = verdict == FSACCESS_AUDITED ? 0 : -EPERM;
	u32 key = request->operation;
	struct fsaccess_counter *counter = bpf_map_lookup_elem(&counters, &key);
	struct fsaccess_event *event;
	long length;

	if (reason == FSACCESS_REASON_NONE) {
		if (counter)
			__sync_fetch_and_add(&counter->allowed, 1);
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (counter) {
		if (verdict == FSACCESS_AUDITED)
			__sync_fetch_and_add(&counter->audited, 1);
		else
			__sync_fetch_and_add(&counter->denied, 1);
		if (!event)
			__sync_fetch_and_add(&counter->dropped, 1);
	}
	if (!event)
		return answer;
	fill_event(event, request, reason, verdict);
	if (path) {
		length = bpf_d_path(path, event->path, sizeof(event->path));
		if (length > 0)
			event->path_length = (u32)length - 1;
		else
			event->path_flags = FSACCESS_PATH_TRUNCATED;
	} else if (name) {
		event->path_length = copy_string(event->path, sizeof(event->path), name);
		event->path_flags = FSACCESS_PATH_NAME_ONLY;
	}
	bpf_ringbuf_submit(event, 0);
	return answer;
}

/* ---- Trust: which devices are signed ---- */

/* The record of this device, made if there is none. Records are changed in place, so that taking
 * trust away never depends on an allocation. */
static __always_inline struct fsaccess_device *record_of(const struct block_device *bdev)
{
	u32 device = bdev->bd_dev;
	struct fsaccess_device *record = bpf_map_lookup_elem(&verity_devices, &device);
	struct fsaccess_device fresh = {};

	if (record && record->identity == (u64)bdev)
		return record;
	fresh.first_seen = bpf_ktime_get_boot_ns();
	fresh.identity = (u64)bdev;
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

/* dm-verity reports a device each time a verity table is resumed: its root hash, then the signature
 * the kernel has verified, or NULL and 0 if there is none. */
SEC("lsm/bdev_setintegrity")
int fsaccess_setintegrity(u64 *ctx)
{
	const struct block_device *bdev = cast_to(ctx[0], struct block_device);
	struct fsaccess_device *record;
	u32 type = (u32)ctx[1];
	u64 size = ctx[3];
	u64 value;

	if (type != LSM_INT_DMVERITY_ROOTHASH && type != LSM_INT_DMVERITY_SIG_VALID)
		return 0;
	/* Before 6.16 the verifier refuses a plain load of the argument `const void *value`. */
	if (bpf_get_func_arg(ctx, 2, &value))
		value = 0;
	record = record_of(bdev);
	if (!record)
		return 0;
	record->changed = bpf_ktime_get_boot_ns();
	if (type == LSM_INT_DMVERITY_ROOTHASH) {
		if (value && size)
			record_root_hash(record, value);
		else
			record->flags = 0;
	} else if (value && size) {
		record->flags |= FSACCESS_DEVICE_SIGNED;
	} else {
		record->flags &= ~FSACCESS_DEVICE_SIGNED;
	}
	return 0;
}

SEC("lsm/bdev_free_security")
int fsaccess_bdev_free(u64 *ctx)
{
	const struct block_device *bdev = cast_to(ctx[0], struct block_device);
	u32 device = bdev->bd_dev;

	bpf_map_delete_elem(&verity_devices, &device);
	return 0;
}

/* ---- Enforcement ---- */

static __always_inline int judge_program(struct linux_binprm *bprm,
					 enum fsaccess_operation operation)
{
	struct request request = {.operation = operation, .prot = PROT_EXEC};
	enum fsaccess_reason reason = judge(&request, data_inode(bprm->file), false);

	return conclude(&request, reason, true, &bprm->file->f_path, 0);
}

/* Runs for the file named in execve and for each interpreter in turn. */
SEC("lsm.s/bprm_check_security")
int fsaccess_exec(u64 *ctx)
{
	if (!armed)
		return 0;
	return judge_program((struct linux_binprm *)ctx[0], FSACCESS_OP_EXEC);
}

/* execveat(AT_EXECVE_CHECK) never reaches bprm_check_security. A real execve does, and is judged
 * there only, so that it is counted and reported once. */
SEC("lsm.s/bprm_creds_for_exec")
int fsaccess_exec_check(u64 *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx[0];

	if (!armed || !core_field_exists(bprm->is_check) || !core_bitfield(bprm, is_check))
		return 0;
	return judge_program(bprm, FSACCESS_OP_EXEC_CHECK);
}

SEC("lsm.s/mmap_file")
int fsaccess_mmap(u64 *ctx)
{
	struct file *file = (struct file *)ctx[0];
	struct request request = {
		.operation = FSACCESS_OP_MMAP,
		.prot = (u32)ctx[2],
		.flags = ctx[3],
	};
	enum fsaccess_reason reason;

	if (!armed || !(request.prot & PROT_EXEC))
		return 0;
	/* `file` is NULL for anonymous memory. Before 7.0 the verifier takes it for never NULL and
	 * deletes a test of it, so the test is made on a pointer it knows nothing of; since 7.0
	 * it demands the test of `file` itself. Without the first, 6.12 oopses here. */
	if (!cast_to(file, struct file) || !file) {
		reason = judge(&request, NULL, false);
		return conclude(&request, reason, true, NULL, 0);
	}
	reason = judge(&request, data_inode(file), false);
	return conclude(&request, reason, true, &file->f_path, 0);
}

/* Not sleepable: no bpf_real_data_inode, no bpf_d_path. None is needed to see through overlayfs:
 * the vm_file of a mapped overlay file is the layer's own file (backing-file.c, since 6.6), whose
 * inode is the one that hosts the data. */
SEC("lsm/file_mprotect")
int fsaccess_mprotect(u64 *ctx)
{
	const struct vm_area_struct *vma = cast_to(ctx[0], struct vm_area_struct);
	struct request request = {
		.operation = FSACCESS_OP_MPROTECT,
		.prot = (u32)ctx[2],
	};
	enum fsaccess_reason reason;
	const struct file *file;
	u64 name = 0;

	if (!armed || !(request.prot & PROT_EXEC))
		return 0;
	request.flags = vma->vm_flags;
	if (!(request.prot & PROT_WRITE) && (request.flags & VM_EXEC))
		return 0; /* gains nothing */
	file = vma->vm_file;
	if (file)
		name = (u64)file->f_path.dentry->d_name.name;
	reason = judge(&request, file ? file->f_inode : NULL, vma->anon_vma != NULL);
	return conclude(&request, reason, true, NULL, name);
}

/* ---- Guard: nobody but the owner gets at the policy's own objects ---- */

static __always_inline bool is_owner(const struct task_struct *task)
{
	u32 tgid = owner_tgid;

	if (!tgid || (u32)task->tgid != tgid)
		return false;
	return tgid == 1 ||
	       task->group_leader->start_boottime / NS_PER_CLOCK_TICK == owner_start_ticks;
}

static __always_inline bool is_listed(const volatile u32 *ids, u32 count, u32 id)
{
	for (u32 i = 0; i < count; i++)
		if (id && ids[i] == id)
			return true;
	return false;
}

static __always_inline int guard(enum fsaccess_operation operation, enum fsaccess_reason reason,
				 u32 id)
{
	struct request request = {.operation = operation, .object = id};

	if (is_owner(bpf_get_current_task_btf()))
		reason = FSACCESS_REASON_NONE;
	return conclude(&request, reason, false, NULL, 0);
}

/* Every way to a map fd ends in bpf_map_new_fd(), which asks this hook. An fd opened read-only is
 * refused as well: it is enough to load a program that writes the map. */
SEC("lsm/bpf_map")
int fsaccess_guard_map(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_map)->id;

	if (!armed || !is_listed(guard_map_ids, FSACCESS_MAX_MAPS, id))
		return 0;
	return guard(FSACCESS_OP_BPF_MAP, FSACCESS_REASON_GUARD_MAP, id);
}

SEC("lsm/bpf_prog")
int fsaccess_guard_program(u64 *ctx)
{
	u32 id = cast_to(ctx[0], struct bpf_prog)->aux->id;

	if (!armed || !is_listed(guard_program_ids, FSACCESS_MAX_PROGRAMS, id))
		return 0;
	return guard(FSACCESS_OP_BPF_PROGRAM, FSACCESS_REASON_GUARD_PROGRAM, id);
}

/* There is no hook for a new link fd, so the command itself is watched. */
SEC("lsm/bpf")
int fsaccess_guard_link(u64 *ctx)
{
	u32 id;

	if (!armed || (u32)ctx[0] != BPF_LINK_GET_FD_BY_ID)
		return 0;
	id = cast_to(ctx[1], union bpf_attr)->link_id;
	if (!is_listed(guard_link_ids, FSACCESS_MAX_LINKS, id))
		return 0;
	return guard(FSACCESS_OP_BPF_LINK, FSACCESS_REASON_GUARD_LINK, id);
}

/* The owner holds the fds and maps .bss: attaching to it (ptrace, /proc/PID/mem, process_vm_writev,
 * pidfd_getfd) is as good as owning. Looking (PTRACE_MODE_READ) is allowed. */
static __always_inline int judge_trace(const struct task_struct *tracer,
				       const struct task_struct *tracee, u32 mode)
{
	struct request request = {
		.operation = FSACCESS_OP_PTRACE,
		.prot = mode,
		.object = (u32)tracee->tgid,
	};

	if (tracer->tgid == tracee->tgid)
		return 0;
	if (is_owner(tracee))
		return conclude(&request, FSACCESS_REASON_PTRACE_OWNER, false, NULL, 0);
	if (deny_ptrace)
		return conclude(&request, FSACCESS_REASON_PTRACE, true, NULL, 0);
	return 0;
}

SEC("lsm/ptrace_access_check")
int fsaccess_ptrace(u64 *ctx)
{
	const struct task_struct *tracee = cast_to(ctx[0], struct task_struct);
	u32 mode = (u32)ctx[1];

	if (!armed || !(mode & PTRACE_MODE_ATTACH))
		return 0;
	return judge_trace(bpf_get_current_task_btf(), tracee, mode);
}

/* PTRACE_TRACEME: here the caller is the one to be traced, by its parent. */
SEC("lsm/ptrace_traceme")
int fsaccess_traceme(u64 *ctx)
{
	const struct task_struct *tracer = cast_to(ctx[0], struct task_struct);

	if (!armed)
		return 0;
	return judge_trace(tracer, bpf_get_current_task_btf(), PTRACE_MODE_ATTACH);
}

/* ---- Status as text, for readers that must not hold a map fd ----
 *
 * Two map element iterators. Attached to `counters` and to `verity_devices` and pinned in bpffs,
 * they print to whoever may read the files. Not loaded unless asked for (the `?`). The text is one
 * item a line, a keyword first, then words or name-value pairs.
 */

static const char operation_names[FSACCESS_OP_COUNT][12] = {
	[FSACCESS_OP_EXEC] = "exec",
	[FSACCESS_OP_EXEC_CHECK] = "exec_check",
	[FSACCESS_OP_MMAP] = "mmap",
	[FSACCESS_OP_MPROTECT] = "mprotect",
	[FSACCESS_OP_PTRACE] = "ptrace",
	[FSACCESS_OP_BPF_MAP] = "bpf_map",
	[FSACCESS_OP_BPF_PROGRAM] = "bpf_program",
	[FSACCESS_OP_BPF_LINK] = "bpf_link",
};

static __always_inline void print_ids(struct seq_file *seq, const volatile u32 *ids, u32 count,
				      const char *format, u32 format_size)
{
	for (u32 i = 0; i < count; i++) {
		u64 id = ids[i];

		if (id)
			bpf_seq_printf(seq, format, format_size, &id, sizeof(id));
	}
}

SEC("?iter/bpf_map_elem")
int fsaccess_status(struct bpf_iter__bpf_map_elem *ctx)
{
	static const char map_format[] = "guard_map %u\n";
	static const char program_format[] = "guard_program %u\n";
	static const char link_format[] = "guard_link %u\n";
	const struct fsaccess_counter *counter = ctx->value;
	struct seq_file *seq = ctx->meta->seq;
	const u32 *operation = ctx->key;

	if (!operation || !counter || *operation >= FSACCESS_OP_COUNT)
		return 0;
	if (*operation == 0) {
		seq_print(seq, "armed %u\naudit %u\ninitramfs_dev %u:%u\n", armed, audit,
			  initramfs_dev >> 20, initramfs_dev & 0xfffff);
		seq_print(seq, "owner %u start_ticks %llu\n", owner_tgid, owner_start_ticks);
		print_ids(seq, guard_map_ids, FSACCESS_MAX_MAPS, map_format, sizeof(map_format));
		print_ids(seq, guard_program_ids, FSACCESS_MAX_PROGRAMS, program_format,
			  sizeof(program_format));
		print_ids(seq, guard_link_ids, FSACCESS_MAX_LINKS, link_format,
			  sizeof(link_format));
	}
	seq_print(seq, "counter %s allowed %llu denied %llu audited %llu dropped %llu\n",
		  (u64)operation_names[*operation], counter->allowed, counter->denied,
		  counter->audited, counter->dropped);
	return 0;
}

SEC("?iter/bpf_map_elem")
int fsaccess_devices(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct fsaccess_device *record = ctx->value;
	struct seq_file *seq = ctx->meta->seq;
	const u32 *device = ctx->key;
	char algorithm[FSACCESS_ALGORITHM_SIZE];
	u32 length;

	if (!device || !record)
		return 0;
	__builtin_memcpy(algorithm, record->algorithm, sizeof(algorithm));
	algorithm[sizeof(algorithm) - 1] = 0;
	length = record->digest_length;
	seq_print(seq, "device %u:%u signed %u first_seen %llu changed %llu", *device >> 20,
		  *device & 0xfffff, record->flags & FSACCESS_DEVICE_SIGNED, record->first_seen,
		  record->changed);
	if (record->flags & FSACCESS_DEVICE_ROOT_HASH) {
		seq_print(seq, " algorithm %s root_hash ", (u64)algorithm);
#pragma clang loop unroll(full)
		for (u32 i = 0; i < FSACCESS_DIGEST_SIZE; i += 4) {
			if (i < length)
				seq_print(seq, "%02x%02x%02x%02x", record->digest[i],
					  record->digest[i + 1], record->digest[i + 2],
					  record->digest[i + 3]);
		}
	}
	seq_print(seq, "\n", 0);
	return 0;
}
