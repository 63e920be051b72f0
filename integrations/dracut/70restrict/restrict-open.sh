#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# dracut hook: makes the device /dev/mapper/root of the signed root, once.

if /restrict/open; then
    rm -f -- "${job:?}"
else
    die "restrict: the signed root could not be opened (see above)"
fi
