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
    # udev's rules for device-mapper: systemd waits until they say that the root device is ready.
    echo dm
    return 0
}

install() {
    # shellcheck disable=SC2154  # dracut's: initdir, kernel, srcmods, moddir
    local config="${dracutsysrootdir-}/etc/restrict/init.conf"

    if dracut_module_included systemd && grep -Eq '^\s*keep\s*=\s*exec\b' "$config"; then
        derror "restrict: systemd in the initramfs closes the fds that keep the policy: write"
        derror "restrict: 'keep = pins' into $config, or leave the line out"
        exit 1
    fi
    # dracut leaves /usr/local out of its PATH.
    PATH="$PATH:/usr/local/sbin:/usr/local/bin" restrict initramfs tree "$initdir" \
        --config "$config" --modules-from "${srcmods:-/lib/modules/$kernel}" || {
        derror "restrict: its part of the initramfs could not be made (see above)"
        exit 1
    }
    # In the loop that waits for the root device, once udev has found the disks; with systemd there
    # is no such loop unless a module needs it.
    inst_hook initqueue/settled 70 "$moddir/restrict-open.sh"
    inst_hook initqueue/finished 70 "$moddir/restrict-opened.sh"
    dracut_need_initqueue
}
