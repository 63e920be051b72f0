#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# dracut hook: makes the device /dev/mapper/root of the signed root.

if [ -x /restrict/open ] && [ ! -e /dev/mapper/root ]; then
    /restrict/open || die "restrict: the signed root could not be opened (see above)"
fi
