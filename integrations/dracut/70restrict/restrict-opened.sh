#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# dracut hook: what the loop waits for, beside the root device itself. restrict-open.sh removes
# itself when it has succeeded.

[ ! -e "${hookdir:?}/initqueue/settled/70-restrict-open.sh" ]
