/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs a pinned program of tests/objects/flood.bpf.c over and over, until it is killed:
 *
 *     flood PIN RECORD_SIZE
 *
 * The producer of both consumers of a ring buffer, ours and libbpf's.
 */
#include <bpf/bpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct {
		__u32 count, size;
	} context = {.count = 10000};
	LIBBPF_OPTS(bpf_test_run_opts, run, .ctx_in = &context, .ctx_size_in = sizeof(context));
	int fd, error;

	if (argc != 3) {
		fprintf(stderr, "usage: flood PIN RECORD_SIZE\n");
		return 2;
	}
	context.size = atoi(argv[2]);
	fd = bpf_obj_get(argv[1]);
	if (fd < 0) {
		fprintf(stderr, "flood: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	do
		error = bpf_prog_test_run_opts(fd, &run);
	while (!error && !run.retval);
	fprintf(stderr, "flood: the program ended with %d, the call with %d\n", run.retval, error);
	return 1;
}
