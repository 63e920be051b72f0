/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Does one thing over and over, in a guest, and prints how long it took:
 *
 *     workload exec COUNT PROGRAM      posix_spawn (vfork, execve) and wait
 *     workload map COUNT FILE          mmap of one page, private, PROT_READ|PROT_EXEC, and munmap
 *     workload protect COUNT FILE      mprotect of a page: PROT_READ, then PROT_READ|PROT_EXEC
 *     workload anonymous COUNT         mmap of one anonymous page, read and write, and munmap
 *     workload check COUNT FILE        execveat(AT_EXECVE_CHECK), 6.14
 *     workload trace COUNT             readlink of /proc/PARENT/exe: asks ptrace_access_check
 *     workload stat COUNT FILE         stat
 *     workload open COUNT FILE         open for reading, and close
 *     workload ioctl COUNT FILE        FIOCLEX, about the shortest there is
 *     workload chmod COUNT FILE        chmod to 0644
 *     workload chown COUNT FILE        chown to the root
 *     workload create COUNT NAME       open(O_CREAT), close, unlink
 *     workload mkdir COUNT NAME        mkdir and rmdir
 *     workload rename COUNT FILE       rename to FILE.new, and back
 *     workload mount COUNT DIRECTORY   bind mount over itself, and umount
 *
 * Prints "COUNT NANOSECONDS". An operation that fails ends it with status 1 and the errno's name.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define EXECVE_CHECK 0x10000 /* AT_EXECVE_CHECK */

extern char **environ;

static int fd = -1;
static void *page;
static char *path, *other;

static int do_exec(void)
{
	char *words[] = {path, NULL};
	int status;
	pid_t pid;

	errno = posix_spawn(&pid, path, NULL, NULL, words, environ);
	if (errno)
		return -1;
	return waitpid(pid, &status, 0) == pid && !status ? 0 : -1;
}

static int do_map(void)
{
	void *p = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);

	return p == MAP_FAILED ? -1 : munmap(p, PAGE);
}

static int do_protect(void)
{
	if (mprotect(page, PAGE, PROT_READ))
		return -1;
	return mprotect(page, PAGE, PROT_READ | PROT_EXEC);
}

static int do_anonymous(void)
{
	void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? -1 : munmap(p, PAGE);
}

static int do_check(void)
{
	char *words[] = {path, NULL};

	return syscall(SYS_execveat, fd, "", words, environ, AT_EMPTY_PATH | EXECVE_CHECK) ? -1 : 0;
}

static int do_trace(void)
{
	char link[64], target[PAGE];

	snprintf(link, sizeof(link), "/proc/%d/exe", (int)getppid());
	return readlink(link, target, sizeof(target)) > 0 ? 0 : -1;
}

static int do_stat(void)
{
	struct stat found;

	return stat(path, &found);
}

static int do_open(void)
{
	int opened = open(path, O_RDONLY | O_CLOEXEC);

	return opened < 0 ? -1 : close(opened);
}

static int do_ioctl(void)
{
	return ioctl(fd, FIOCLEX);
}

static int do_chmod(void)
{
	return chmod(path, 0644);
}

static int do_chown(void)
{
	return chown(path, 0, 0);
}

static int do_create(void)
{
	int opened = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	return opened < 0 || close(opened) ? -1 : unlink(path);
}

static int do_mkdir(void)
{
	return mkdir(path, 0700) ? -1 : rmdir(path);
}

static int do_rename(void)
{
	return rename(path, other) ? -1 : rename(other, path);
}

static int do_mount(void)
{
	return mount(path, path, NULL, MS_BIND, NULL) ? -1 : umount2(path, 0);
}

enum needs { NOTHING, A_PATH, A_FILE, A_PAGE };

static const struct {
	const char *name;
	int (*once)(void);
	enum needs needs;
} kinds[] = {
	{"exec", do_exec, A_PAGE},     {"map", do_map, A_PAGE},
	{"protect", do_protect, A_PAGE}, {"anonymous", do_anonymous, NOTHING},
	{"check", do_check, A_PAGE},   {"trace", do_trace, NOTHING},
	{"stat", do_stat, A_PATH},     {"open", do_open, A_PATH},
	{"ioctl", do_ioctl, A_FILE},   {"chmod", do_chmod, A_PATH},
	{"chown", do_chown, A_PATH},   {"create", do_create, A_PATH},
	{"mkdir", do_mkdir, A_PATH},   {"rename", do_rename, A_PATH},
	{"mount", do_mount, A_PATH},
};

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	long long start, count;
	unsigned int kind;
	long i;

	for (kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++)
		if (argc > 2 && !strcmp(argv[1], kinds[kind].name))
			break;
	if (kind == sizeof(kinds) / sizeof(kinds[0]) || argc != 3 + (kinds[kind].needs != NOTHING)) {
		fprintf(stderr, "usage: workload KIND COUNT [FILE]\n");
		return 2;
	}
	count = atol(argv[2]);
	if (kinds[kind].needs != NOTHING) {
		path = argv[3];
		if (asprintf(&other, "%s.new", path) < 0)
			return 1;
	}
	if (kinds[kind].needs >= A_FILE) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (kinds[kind].needs == A_PAGE)
			page = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
		if (fd < 0 || page == MAP_FAILED) {
			fprintf(stderr, "workload: %s: %s\n", path, strerrorname_np(errno));
			return 1;
		}
	}
	start = now();
	for (i = 0; i < count; i++) {
		if (kinds[kind].once()) {
			fprintf(stderr, "workload: %s: %s\n", argv[1], strerrorname_np(errno));
			return 1;
		}
	}
	printf("%lld %lld\n", count, now() - start);
	return 0;
}
