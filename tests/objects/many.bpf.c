/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Two hundred programs in one object; each counts its runs in a place of its own. */
#include "bpf.h"

u64 runs[200];

#define ONE(n)                                                          \
	SEC("raw_tp/sys_enter") int many_##n(void *ctx)                 \
	{                                                               \
		__sync_fetch_and_add(&runs[1##n - 1000], 1);            \
		return 0;                                               \
	}

#define TEN(n)                                                          \
	ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4)               \
	ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) ONE(n##9)

TEN(00) TEN(01) TEN(02) TEN(03) TEN(04) TEN(05) TEN(06) TEN(07) TEN(08) TEN(09)
TEN(10) TEN(11) TEN(12) TEN(13) TEN(14) TEN(15) TEN(16) TEN(17) TEN(18) TEN(19)
