/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The form that most programs have. */
#ifndef BPF_COMMON_HOOK_H
#define BPF_COMMON_HOOK_H

#include "state.h"

/* From 0 or an error to what the hook returns; another way of attaching may define its own. */
#ifndef ANSWER
#define ANSWER(value) (value)
#endif

/* A whole program: it allows until the policy is armed, and then gives `answer`, which may use ctx. */
#define ARMED_HOOK(section, program, answer)          \
	SEC(section)                                  \
	int program(u64 *ctx __attribute__((unused))) \
	{                                             \
		return ANSWER(armed ? (answer) : 0);  \
	}

#endif
