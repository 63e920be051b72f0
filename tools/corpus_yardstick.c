/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The yardstick of tools/corpus: what libbpf makes of objects, one line of JSON each, in the form
 * of the corpus' recorded results.
 *
 *   corpus_yardstick [-b BTF] [-l] OBJECT...
 *
 * -b: relocate for this kernel's BTF, not the running kernel's. -l: load each program by itself
 * instead, and tell the errno.
 * Where an object cannot be prepared as a whole each program is prepared by itself. A map that
 * the running kernel refuses is replaced by a placeholder, so that instructions can be had for
 * any object; "refused_maps" counts them.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than the headers of Debian 12. */
#define CGRP_STORAGE 32
#define ARENA 33

static bool foreign, placeholders;
static int refused_maps;
static char last_warning[512];

long __real_syscall(long number, ...);

/* Linked with --wrap=syscall. */
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	long ret = __real_syscall(number, a, b, c, d, e, f);

	if (number != __NR_bpf || ret >= 0 || !placeholders)
		return ret;
	switch (a & 0xffff) {
	case BPF_MAP_CREATE:
		refused_maps++;
		return open("/dev/zero", O_RDWR | O_CLOEXEC);
	case BPF_BTF_LOAD:
		return foreign ? open("/dev/zero", O_RDWR | O_CLOEXEC) : ret;
	case BPF_MAP_UPDATE_ELEM:
	case BPF_MAP_FREEZE:
		return 0;
	}
	return ret;
}

static int note(enum libbpf_print_level level, const char *format, va_list args)
{
	char line[512];

	if (level != LIBBPF_WARN)
		return 0;
	vsnprintf(line, sizeof(line), format, args);
	if (!last_warning[0])
		snprintf(last_warning, sizeof(last_warning), "%s", line);
	return 0;
}

static void text(const char *s)
{
	putchar('"');
	for (; s && *s; s++) {
		unsigned char c = *s;

		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static struct bpf_object *open_object(const char *path, const char *btf)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .btf_custom_path = btf);

	return bpf_object__open_file(path, &opts);
}

static void size_maps(struct bpf_object *object)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object) {
		bpf_map__set_pin_path(map, NULL);
		if (!bpf_map__max_entries(map) &&
		    bpf_map__type(map) != BPF_MAP_TYPE_PERF_EVENT_ARRAY)
			switch (bpf_map__type(map)) {
			case BPF_MAP_TYPE_SK_STORAGE:
			case BPF_MAP_TYPE_INODE_STORAGE:
			case BPF_MAP_TYPE_TASK_STORAGE:
			case CGRP_STORAGE:
			case BPF_MAP_TYPE_CGROUP_STORAGE:
			case BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE:
			case BPF_MAP_TYPE_STRUCT_OPS:
			case ARENA:
				break;
			default:
				bpf_map__set_max_entries(map, 1);
			}
	}
}

/* The object anew, with one of its programs to be loaded; NULL if it cannot be opened. */
static struct bpf_object *open_for(const char *path, const char *btf, const char *name)
{
	struct bpf_object *object = open_object(path, btf);
	struct bpf_program *program;

	if (!object)
		return NULL;
	size_maps(object);
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, !strcmp(bpf_program__name(program), name));
	last_warning[0] = 0;
	return object;
}

static void instructions(struct bpf_object *object, struct bpf_program *program)
{
	const struct bpf_insn *insns = bpf_program__insns(program);
	size_t count = bpf_program__insn_cnt(program), i;

	printf(",\"n\":%zu,\"insns\":\"", count);
	for (i = 0; i < count; i++) {
		struct bpf_insn insn = insns[i];
		const unsigned char *bytes = (const unsigned char *)&insn;
		bool wide = insn.code == (BPF_LD | BPF_IMM | BPF_DW);
		int k;

		if (wide && (insn.src_reg == BPF_PSEUDO_MAP_FD || insn.src_reg == BPF_PSEUDO_MAP_VALUE)) {
			struct bpf_map *map;
			int index = 0;

			bpf_object__for_each_map(map, object) {
				if (bpf_map__fd(map) == insn.imm) {
					insn.imm = 0x4d000000 | index;
					break;
				}
				index++;
			}
		}
		if (foreign) {
			unsigned char dst = insn.dst_reg;

			insn.dst_reg = insn.src_reg;
			insn.src_reg = dst;
			insn.off = __builtin_bswap16(insn.off);
			insn.imm = __builtin_bswap32(insn.imm);
		}
		for (k = 0; k < 8; k++)
			printf("%02x", bytes[k]);
		if (wide && i + 1 < count) {
			insn = insns[++i];
			if (foreign) {
				insn.off = __builtin_bswap16(insn.off);
				insn.imm = __builtin_bswap32(insn.imm);
			}
			for (k = 0; k < 8; k++)
				printf("%02x", bytes[k]);
		}
	}
	printf("\"");
}

static void program_head(struct bpf_program *program, bool autoload)
{
	printf("{\"name\":");
	text(bpf_program__name(program));
	printf(",\"sec\":");
	text(bpf_program__section_name(program));
	printf(",\"type\":%d,\"eat\":%d,\"flags\":%u,\"autoload\":%d", bpf_program__type(program),
	       bpf_program__expected_attach_type(program), bpf_program__flags(program), autoload);
}

static void maps(struct bpf_object *object)
{
	struct bpf_map *map;
	const char *comma = "";

	printf(",\"maps\":[");
	bpf_object__for_each_map(map, object) {
		printf("%s{\"name\":", comma);
		text(bpf_map__name(map));
		printf(",\"type\":%d,\"key\":%u,\"value\":%u,\"max\":%u,\"flags\":%u,\"extra\":%llu,"
		       "\"pin\":%d,\"autocreate\":%d}",
		       bpf_map__type(map), bpf_map__key_size(map), bpf_map__value_size(map),
		       bpf_map__max_entries(map), bpf_map__map_flags(map),
		       (unsigned long long)bpf_map__map_extra(map), bpf_map__pin_path(map) != NULL,
		       bpf_map__autocreate(map));
		comma = ",";
	}
	printf("]");
}

static void one_by_one(const char *path, const char *btf, struct bpf_object *names)
{
	struct bpf_program *wanted;
	const char *comma = "";

	printf(",\"progs\":[");
	bpf_object__for_each_program(wanted, names) {
		const char *name = bpf_program__name(wanted);
		struct bpf_object *object = open_for(path, btf, name);
		int err;

		if (!object)
			continue;
		printf("%s", comma);
		program_head(wanted, bpf_program__autoload(wanted));
		if (bpf_program__autoload(wanted)) {
			err = bpf_object__prepare(object);
			printf(",\"err\":%d", err);
			if (err) {
				printf(",\"why\":");
				text(last_warning);
			} else {
				instructions(object, bpf_object__find_program_by_name(object, name));
			}
		}
		printf("}");
		comma = ",";
		bpf_object__close(object);
	}
	printf("]");
}

static void prepare(const char *path, const char *btf)
{
	struct bpf_object *object, *plain;
	struct bpf_program *program;
	const char *comma = "";
	int err;

	object = open_object(path, btf);
	if (!object) {
		printf("{\"object\":");
		text(path);
		printf(",\"open_err\":%d,\"why\":", -errno);
		text(last_warning);
		printf("}\n");
		return;
	}
	plain = open_object(path, btf);
	size_maps(object);
	err = bpf_object__prepare(object);
	printf("{\"object\":");
	text(path);
	printf(",\"open_err\":0,\"prepare_err\":%d,\"refused_maps\":%d,\"why\":", err, refused_maps);
	text(last_warning);
	maps(object);
	if (err) {
		one_by_one(path, btf, plain);
	} else {
		printf(",\"progs\":[");
		bpf_object__for_each_program(program, object) {
			struct bpf_program *before = bpf_object__find_program_by_name(
				plain, bpf_program__name(program));

			printf("%s", comma);
			program_head(program, before ? bpf_program__autoload(before) : 1);
			if (bpf_program__autoload(program))
				instructions(object, program);
			printf("}");
			comma = ",";
		}
		printf("]");
	}
	printf("}\n");
	bpf_object__close(object);
	bpf_object__close(plain);
}

static void load(const char *path, const char *btf)
{
	struct bpf_object *names = open_object(path, btf);
	struct bpf_program *wanted;
	const char *comma = "";

	printf("{\"object\":");
	text(path);
	printf(",\"open_err\":%d,\"why\":", names ? 0 : -errno);
	text(last_warning);
	printf(",\"load\":[");
	if (names)
		bpf_object__for_each_program(wanted, names) {
			struct bpf_object *object =
				open_for(path, btf, bpf_program__name(wanted));
			bool autoload = bpf_program__autoload(wanted);
			int err;

			if (!object)
				continue;
			err = autoload ? bpf_object__load(object) : 0;
			printf("%s{\"name\":", comma);
			text(bpf_program__name(wanted));
			printf(",\"autoload\":%d,\"err\":%d,\"log\":", autoload, err);
			text(err ? last_warning : "");
			printf("}");
			comma = ",";
			bpf_object__close(object);
		}
	printf("]}\n");
}

int main(int argc, char **argv)
{
	const char *btf = NULL;
	bool loads = false;
	int option, i;

	while ((option = getopt(argc, argv, "b:l")) != -1) {
		if (option == 'b')
			btf = optarg;
		else if (option == 'l')
			loads = true;
		else
			return 2;
	}
	libbpf_set_print(note);
	for (i = optind; i < argc; i++) {
		unsigned char ident[EI_NIDENT] = {0};
		int fd = open(argv[i], O_RDONLY | O_CLOEXEC);

		if (fd >= 0) {
			if (read(fd, ident, sizeof(ident)) != sizeof(ident))
				ident[EI_DATA] = 0;
			close(fd);
		}
		foreign = ident[EI_DATA] == (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ELFDATA2MSB : ELFDATA2LSB);
		refused_maps = 0;
		last_warning[0] = 0;
		placeholders = !loads;
		if (loads)
			load(argv[i], btf);
		else
			prepare(argv[i], btf);
		fflush(stdout);
	}
	return 0;
}
