#!/usr/bin/env bash
# Lets this machine run another platform's programs (qemu-user-static, binfmt_misc), or undoes it.
#   emulation.sh on linux/arm64     emulation.sh off
# What was there before is left alone; `off` takes back only what `on` did.
set -euo pipefail

state=${FP4FORGE_STATE:-/var/lib/fp4forge}/emulation
misc=/proc/sys/fs/binfmt_misc

say() { printf 'emulation: %s\n' "$*" >&2; }
die() { say "$1"; exit 9; }

off() {
    [ -f "$state" ] || { say "nothing to undo"; return; }
    while read -r what name; do
        case $what in
        registered) [ ! -e "$misc/$name" ] || echo -1 >"$misc/$name" ;;
        mounted) umount "$misc" ;;
        esac
    done < <(tac "$state")
    rm "$state"
    say "as it was before"
}

on() {
    local machine
    case $1 in
    linux/arm64) machine=aarch64 ;;
    linux/amd64) machine=x86_64 ;;
    *) die "'$1' is not linux/amd64 or linux/arm64" ;;
    esac
    [ "$(uname -m)" != "$machine" ] || return 0
    # Registered under any name, by anyone: it works, and is not touched.
    if grep -qls "^interpreter .*$machine" "$misc"/*; then
        say "$1 runs here already"
        return
    fi
    [ "$(id -u)" = 0 ] || die "$1 needs root once: run scripts/emulation.sh on $1 as root"
    if ! [ -e "/usr/lib/binfmt.d/qemu-$machine.conf" ]; then
        command -v apt-get >/dev/null || die "install qemu-user-static and register $machine with binfmt_misc"
        say "installing qemu-user-static"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -qq -y --no-install-recommends qemu-user-static >/dev/null
    fi
    mkdir -p "$(dirname "$state")"
    if ! [ -e "$misc/register" ]; then
        mount -t binfmt_misc binfmt_misc "$misc" || die "this kernel has no binfmt_misc"
        echo "mounted $misc" >>"$state"
    fi
    # The package's own line; its flag F opens qemu now, so that it works in every container.
    if ! [ -e "$misc/qemu-$machine" ]; then
        cat "/usr/lib/binfmt.d/qemu-$machine.conf" >"$misc/register"
        echo "registered qemu-$machine" >>"$state"
    fi
    say "$1 runs here by qemu; 'scripts/emulation.sh off' undoes it"
}

case ${1:-} in
on) on "${2:?on needs a platform}" ;;
off) off ;;
*) die "usage: emulation.sh on PLATFORM | off" ;;
esac
