/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Run one program and tell how long it took and how much memory it held:
 *
 *     launch RESULT_FD PROGRAM ARGUMENTS...
 *
 * One line goes to RESULT_FD: start (CLOCK_MONOTONIC, ns), nanoseconds from before the spawn until
 * the end was reaped, processor time in user space and kernel (us), peak resident memory (KiB),
 * wait status.
 *
 * It is its own small program because the kernel carries the peak of the memory that execve(2)
 * replaces over into the new image's ru_maxrss (fs/exec.c, exec_mmap): spawned by an interpreter
 * of 30 MB, no program would ever show less than that. This one, linked statically, holds less
 * than any program that is measured with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	struct rusage usage;
	long long start, end;
	int fd, status, error;
	pid_t pid;

	if (argc < 3) {
		fprintf(stderr, "usage: launch RESULT_FD PROGRAM ARGUMENTS...\n");
		return 2;
	}
	fd = atoi(argv[1]);
	if (fcntl(fd, F_SETFD, FD_CLOEXEC)) {
		fprintf(stderr, "launch: fd %d: %s\n", fd, strerror(errno));
		return 2;
	}
	start = now();
	error = posix_spawn(&pid, argv[2], NULL, NULL, argv + 2, environ);
	if (error) {
		fprintf(stderr, "launch: %s: %s\n", argv[2], strerror(error));
		return 2;
	}
	while (wait4(pid, &status, 0, &usage) < 0) {
		if (errno != EINTR) {
			fprintf(stderr, "launch: wait4: %s\n", strerror(errno));
			return 2;
		}
	}
	end = now();
	dprintf(fd, "%lld %lld %lld %ld %d\n", start, end - start,
		(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL +
			usage.ru_utime.tv_usec + usage.ru_stime.tv_usec,
		usage.ru_maxrss, status);
	return 0;
}
