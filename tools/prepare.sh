# SPDX-License-Identifier: BSD-2-Clause
# Sourced by the commands in tools/: finds Python, installs what is missing, makes the virtual
# environment. Sets: TOP (the checkout), CACHE (downloads and builds), PY (Python of the venv),
# IS_ROOT (1 or empty). Nothing is written into the checkout.
set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${RESTRICT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var/cache}/.cache}/pybpf-restrict}
export RESTRICT_CACHE=$CACHE
export PYTHONDONTWRITEBYTECODE=1
IS_ROOT=; [ "$(id -u)" -ne 0 ] || IS_ROOT=1

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# ensure_packages PACKAGE...: install the Debian packages that are missing (root only).
ensure_packages() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ -n "$IS_ROOT" ] || die "these Debian packages are missing: ${missing[*]}. Install them as root: apt-get install ${missing[*]}"
    say "installing ${#missing[@]} Debian packages: ${missing[*]}"
    local log=$CACHE/apt.log
    if ! { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
        { apt-get update >>"$log" 2>&1 &&
          DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; }; }; then
        tail -n 20 "$log" >&2
        die "apt-get could not install: ${missing[*]} (whole output: $log)"
    fi
}

# find_python: a Python that is 3.11 or newer, as BASE_PY.
find_python() {
    local c
    for c in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        [ -n "$c" ] && command -v "$c" >/dev/null 2>&1 || continue
        if "$c" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            BASE_PY=$(command -v "$c"); return 0
        fi
    done
    return 1
}

# ensure_venv GROUP...: a virtual environment with the pinned packages of tools/requirements.txt.
ensure_venv() {
    mkdir -p "$CACHE"
    if ! find_python; then
        ensure_packages python3 python3-venv
        find_python || die "Python 3.11 or newer is needed; set PYTHON to one"
    fi
    "$BASE_PY" -c 'import ensurepip, venv' 2>/dev/null || ensure_packages python3-venv
    local key venv
    key=$( { "$BASE_PY" -c 'import sys; print(sys.version, sys.executable)'; cat "$TOP/tools/requirements.txt"; } | sha256sum | cut -c1-16)
    venv=$CACHE/venv-$key
    if [ ! -e "$venv/.complete" ]; then
        say "making a virtual environment ($("$BASE_PY" --version))"
        (
            flock 9
            if [ ! -e "$venv/.complete" ]; then
                rm -rf "$venv"
                "$BASE_PY" -m venv "$venv"
                "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$TOP/tools/requirements.txt" 2>"$CACHE/pip.log" ||
                    { cat "$CACHE/pip.log" >&2; exit 1; }
                touch "$venv/.complete"
                find "$CACHE" -maxdepth 1 -name 'venv-*' -mtime +30 -exec rm -rf {} +
            fi
        ) 9>"$CACHE/venv.lock" || die "the virtual environment could not be made; see the lines above"
    fi
    [ ! -w "$venv" ] || touch "$venv" # when it was last used
    PY=$venv/bin/python
    export PYTHONPATH=$TOP
    PATH=$venv/bin:$PATH
}
mkdir -p "$CACHE" 2>/dev/null || die "the cache folder $CACHE cannot be made; set RESTRICT_CACHE to another"
