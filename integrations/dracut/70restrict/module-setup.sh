#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# dracut module (/usr/lib/dracut/modules.d/70restrict): puts restrict into the image.
# It is PID 1 by rdinit=/restrict/init on the kernel command line, and then executes /init.

check() {
    # Only where it is asked for, by a configuration that says where the signed root is.
    [[ -r ${dracutsysrootdir-}/etc/restrict/init.conf ]] && return 0
    return 255
}

depends() {
    return 0
}

install() {
    # shellcheck disable=SC2154  # dracut's: initdir, kernel, srcmods, moddir
    restrict initramfs tree "$initdir" --config /etc/restrict/init.conf \
        --modules-from "${srcmods:-/lib/modules/$kernel}" || {
        derror "restrict: its part of the initramfs could not be made"
        exit 1
    }
    # In the loop that waits for the root device, once udev has found the disks.
    inst_hook initqueue/settled 70 "$moddir/restrict-open.sh"
}
