/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads events of tests/objects/flood.bpf.c with libbpf's ring_buffer, until it has seen COUNT:
 *
 *     libbpf_ring OBJECT PIN FLOOD RECORD_SIZE COUNT
 *
 * FLOOD: the producer (flood.c), started here. Prints "NAME NUMBER" lines as child/ring.py does.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static unsigned long long seen, bytes, wanted, check;

static int one(void *context, void *data, size_t size)
{
	(void)context;
	check += *(unsigned long long *)data;
	bytes += size;
	return ++seen >= wanted ? -1 : 0;
}

static long resident(void)
{
	long pages = 0, ignored;
	FILE *file = fopen("/proc/self/statm", "r");

	if (!file || fscanf(file, "%ld %ld", &ignored, &pages) != 2)
		pages = 0;
	if (file)
		fclose(file);
	return pages * sysconf(_SC_PAGESIZE);
}

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	double start, cpu, took, used;
	struct bpf_object *object;
	struct ring_buffer *ring;
	struct bpf_map *globals;
	unsigned long long counts[2];
	long early = 0;
	__u32 zero = 0;
	pid_t child;

	if (argc != 6) {
		fprintf(stderr, "usage: libbpf_ring OBJECT PIN FLOOD RECORD_SIZE COUNT\n");
		return 2;
	}
	wanted = strtoull(argv[5], NULL, 10);
	object = bpf_object__open_file(argv[1], NULL);
	if (!object || bpf_object__load(object) ||
	    bpf_program__pin(bpf_object__find_program_by_name(object, "flood"), argv[2])) {
		fprintf(stderr, "libbpf_ring: cannot load and pin\n");
		return 1;
	}
	globals = bpf_object__find_map_by_name(object, ".bss");
	ring = ring_buffer__new(bpf_object__find_map_fd_by_name(object, "ring"), one, NULL, NULL);
	if (!ring || !globals ||
	    posix_spawn(&child, argv[3], NULL, NULL, (char *[]){argv[3], argv[2], argv[4], NULL},
			environ)) {
		fprintf(stderr, "libbpf_ring: cannot start\n");
		return 1;
	}
	start = now(CLOCK_MONOTONIC);
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	while (seen < wanted) {
		ring_buffer__poll(ring, 100);
		if (!early && seen > wanted / 100)
			early = resident();
		if (waitpid(child, NULL, WNOHANG))
			return 1;
	}
	took = now(CLOCK_MONOTONIC) - start;
	used = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	unlink(argv[2]);
	/* u64 sent, dropped: the first two of .bss but for their order, which BTF knows. */
	if (bpf_map__value_size(globals) < sizeof(counts)) {
		return 1;
	} else {
		char value[bpf_map__value_size(globals)];

		if (bpf_map_lookup_elem(bpf_map__fd(globals), &zero, value))
			return 1;
		memcpy(counts, value + atoi(getenv("BSS_SENT")), 8);
		memcpy(counts + 1, value + atoi(getenv("BSS_DROPPED")), 8);
	}
	printf("events %llu\nbytes %llu\nseconds %f\ncpu %f\nsent %llu\ndropped %llu\ngrown %ld\n",
	       seen, bytes, took, used, counts[0], counts[1], resident() - early);
	return 0;
}
