/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a small C program on libbpf costs: open an object, load it, end.
 *
 *     libbpf_load [--disable PROGRAM]... OBJECT
 *
 * Prints "mark NAME NANOSECONDS" (CLOCK_MONOTONIC) at main, before opening and after loading, and
 * what was loaded, so that the harness can see that every contender loads the same programs.
 * Nothing is attached. The objects are not closed: the kernel does that at the end, as it does
 * for the other contenders.
 */
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	long long first = now(), before, after;
	struct bpf_object *object;
	struct bpf_program *program;
	int loaded = 0, error, i;

	if (argc < 2 || argc % 2) {
		fprintf(stderr, "usage: libbpf_load [--disable PROGRAM]... OBJECT\n");
		return 2;
	}
	libbpf_set_print(NULL);
	before = now();
	object = bpf_object__open_file(argv[argc - 1], NULL);
	if (!object) {
		fprintf(stderr, "libbpf_load: open %s: %s\n", argv[argc - 1], strerror(errno));
		return 1;
	}
	for (i = 1; i < argc - 1; i += 2) {
		program = bpf_object__find_program_by_name(object, argv[i + 1]);
		if (strcmp(argv[i], "--disable") || !program) {
			fprintf(stderr, "libbpf_load: %s %s\n", argv[i], argv[i + 1]);
			return 2;
		}
		bpf_program__set_autoload(program, false);
	}
	error = bpf_object__load(object);
	if (error) {
		fprintf(stderr, "libbpf_load: load %s: %s\n", argv[argc - 1], strerror(-error));
		return 1;
	}
	after = now();
	bpf_object__for_each_program(program, object)
		loaded += bpf_program__fd(program) >= 0;
	printf("mark first %lld\nmark begin %lld\nmark loaded %lld\nprograms %d\n",
	       first, before, after, loaded);
	return 0;
}
