/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Preloaded into a program that calls bpf(2) by way of libc's syscall(): counts the calls of each
 * command and the time in them, and appends them at the end to the file $COUNT_BPF:
 * "COMMAND CALLS FAILED NANOSECONDS" a line.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

#define COMMANDS 64

static struct {
	long long calls, failed, nanoseconds;
} counts[COMMANDS];

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

long syscall(long number, ...)
{
	static long (*real)(long, ...);
	long a[6], result;
	long long start;
	va_list list;
	int i;

	va_start(list, number);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (!real)
		real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	if (number != SYS_bpf)
		return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	start = now();
	result = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	i = (int)a[0] & (COMMANDS - 1);
	counts[i].nanoseconds += now() - start;
	counts[i].calls++;
	counts[i].failed += result < 0;
	return result;
}

__attribute__((destructor)) static void report(void)
{
	const char *path = getenv("COUNT_BPF");
	FILE *file = path ? fopen(path, "a") : NULL;
	int i;

	for (i = 0; file && i < COMMANDS; i++)
		if (counts[i].calls)
			fprintf(file, "%d %lld %lld %lld\n", i, counts[i].calls, counts[i].failed,
				counts[i].nanoseconds);
	if (file)
		fclose(file);
}
