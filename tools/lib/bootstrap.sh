# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by every tool: makes a bare Debian 12/13 or Ubuntu 24.04 ready, quickly
# when it is ready already.
#
#   bootstrap lab          what `slimlab up` needs
#   bootstrap vm           and what its virtual machines need
#   bootstrap demo         and the programs that demo, bench and integration tests run
#   bootstrap test         and the tools of `tools/test`
#
# Afterwards $CHECKOUT, $VENV and $PYTHON are set and ANSIBLE_COLLECTIONS_PATH is
# exported. Messages go to standard error.

CHECKOUT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV=$CHECKOUT/.venv
PYTHON=$VENV/bin/python
CACHE=$CHECKOUT/.cache

# One list per purpose; package names are the same on Debian and Ubuntu.
PACKAGES_LAB=(ca-certificates ethtool gcc iproute2 iputils-ping libc6-dev make mount musl-tools procps
    python3 python3-venv util-linux)
PACKAGES_VM=(cpio debian-archive-keyring debootstrap e2fsprogs kmod openssh-client
    qemu-system-x86 qemu-utils xz-utils)
# What demo, bench and integration tests run is written down beside the bench.
mapfile -t PACKAGES_DEMO < <(grep -E '^[a-z0-9]' "$CHECKOUT/bench/packages.txt")
PACKAGES_TEST=(bird2 containernetworking-plugins crun curl default-jdk-headless git iptables
    nftables openssl podman shellcheck)
# Kernels to boot, and what builds for them.
PACKAGES_GUEST=(busybox-static clang debian-archive-keyring kmod libbpf-dev libelf-dev llvm
    perl qemu-system-x86 sparse xz-utils)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$@"; exit 1; }

need_root() {
    [[ $EUID -eq 0 ]] || die "needs root (network namespaces); run it with sudo"
}

# Print those of the named packages that are not installed.
_missing_packages() {
    local -A installed=()
    local name status
    while read -r name status; do
        [[ $status == *installed ]] && installed[${name%%:*}]=1
    done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' 2>/dev/null | grep -v not-installed)
    for name in "$@"; do
        [[ ${installed[$name]:-} ]] || printf '%s\n' "$name"
    done
}

# Install packages without letting their services start: the lab starts what it
# needs, inside its nodes. An existing policy (invoke-rc.d(8)) is put back.
_apt_install() {
    local policy=/usr/sbin/policy-rc.d kept='' status=0
    export DEBIAN_FRONTEND=noninteractive
    if [[ -e $policy ]]; then
        kept=$(mktemp "$policy.XXXXXX") && cp -p "$policy" "$kept"
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy.new"
    chmod 0755 "$policy.new"
    mv -f "$policy.new" "$policy"
    {
        apt-get -q update &&
            apt-get -q -y -o Dpkg::Options::=--force-confold install --no-install-recommends "$@"
    } >"$CACHE/apt.log" 2>&1 || status=$?
    if [[ $kept ]]; then mv -f "$kept" "$policy"; else rm -f "$policy"; fi
    if ((status)); then
        tail -n 20 "$CACHE/apt.log" >&2
        die "apt-get failed with status $status; the whole log is $CACHE/apt.log"
    fi
}

_ensure_packages() {
    local missing
    mapfile -t missing < <(_missing_packages "$@")
    ((${#missing[@]})) || return 0
    need_root
    command -v apt-get >/dev/null ||
        die "missing ${missing[*]}, and there is no apt-get here; install them by hand"
    say "installing ${missing[*]}"
    _apt_install "${missing[@]}"
}

_ensure_venv() {
    local requirements=$1 stamp=$VENV/.stamp-$2 wanted base
    wanted=$(cat "$CHECKOUT"/tools/requirements.txt "$requirements" | sha256sum)
    [[ -x $PYTHON && -e $stamp && $(<"$stamp") == "$wanted" ]] && return 0
    # The distribution's own Python: every node of the lab sees the same one.
    base=/usr/bin/python3
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$base is older than 3.11; use Debian 12 or Ubuntu 24.04, or newer"
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        rm -rf "$VENV"
        "$base" -m venv "$VENV" || die "could not make $VENV; is python3-venv installed?"
    fi
    say "installing Python packages for '$2' into .venv"
    "$PYTHON" -m pip --disable-pip-version-check -q install -r "$requirements" \
        >"$CACHE/pip.log" 2>&1 || {
        tail -n 20 "$CACHE/pip.log" >&2
        die "pip failed; the whole log is $CACHE/pip.log"
    }
    printf '%s\n' "$wanted" >"$stamp"
}

_ensure_collections() {
    local root=$CACHE/collections/ansible_collections stamp=$CACHE/collections/.stamp wanted
    wanted=$(sha256sum <"$CHECKOUT/tools/collections.txt")
    if [[ ! -e $stamp || $(<"$stamp") != "$wanted" ]]; then
        say "fetching Ansible collections"
        rm -rf "$CACHE/collections" "$CACHE/wheel"
        mkdir -p "$root" "$CACHE/wheel"
        local wheel names
        wheel=$(sed -n 's/^wheel //p' "$CHECKOUT/tools/collections.txt")
        mapfile -t names < <(grep -E '^[a-z_]+/[a-z_]+$' "$CHECKOUT/tools/collections.txt")
        "$PYTHON" -m pip --disable-pip-version-check -q download --no-deps \
            --only-binary :all: -d "$CACHE/wheel" "$wheel" >"$CACHE/pip.log" 2>&1 || {
            tail -n 20 "$CACHE/pip.log" >&2
            die "the wheel $wheel could not be fetched; the whole log is $CACHE/pip.log"
        }
        "$PYTHON" - "$CACHE/wheel" "$CACHE/collections" "${names[@]}" <<'EOF' ||
import pathlib, sys, zipfile

wheels, target, *names = sys.argv[1:]
prefixes = tuple(f"ansible_collections/{name}/" for name in names)
[wheel] = pathlib.Path(wheels).glob("ansible-*.whl")
with zipfile.ZipFile(wheel) as archive:
    members = [name for name in archive.namelist() if name.startswith(prefixes)]
    archive.extractall(target, members)
EOF
            die "the collections could not be taken out of the wheel $wheel"
        rm -rf "$CACHE/wheel"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    # Roles are known by their full names, so the checkout has to lie at such a path.
    local link=$root/slim/overlay
    if [[ $(readlink "$link" 2>/dev/null) != "$CHECKOUT" ]]; then
        mkdir -p "$root/slim"
        ln -sfn "$CHECKOUT" "$link"
    fi
}

bootstrap() {
    local purpose=$1
    mkdir -p "$CACHE"
    # Two tools started at once must not install over each other.
    exec {BOOTSTRAP_LOCK}>"$CACHE/bootstrap.lock"
    flock "$BOOTSTRAP_LOCK"
    local packages=("${PACKAGES_LAB[@]}")
    case $purpose in
    lab) ;;
    vm) packages+=("${PACKAGES_VM[@]}") ;;
    demo) packages+=("${PACKAGES_DEMO[@]}") ;;
    test) packages+=("${PACKAGES_DEMO[@]}" "${PACKAGES_TEST[@]}" "${PACKAGES_GUEST[@]}") ;;
    *) die "bootstrap: no purpose '$purpose'" ;;
    esac
    _ensure_packages "${packages[@]}"
    _ensure_venv "$CHECKOUT/tools/requirements.txt" lab
    [[ $purpose != test ]] || _ensure_venv "$CHECKOUT/tests/requirements.txt" test
    _ensure_collections
    exec {BOOTSTRAP_LOCK}>&-
    export ANSIBLE_COLLECTIONS_PATH=$CACHE/collections
    export PYTHONPATH=$CHECKOUT/tools${PYTHONPATH:+:$PYTHONPATH}
}
