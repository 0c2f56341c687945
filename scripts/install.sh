#!/usr/bin/env bash
# Installs the distribution packages of the programs on standard input, "PROGRAM PACKAGE" a line,
# that are not there. First argument: who asks, for messages.
set -euo pipefail

who=$1
missing=()
while read -r program package; do
    [ -n "$program" ] || continue
    [ -n "$(PATH=$PATH:/usr/sbin:/sbin type -P "$program")" ] || missing+=("$package")
done

if [ "${#missing[@]}" = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    printf '%s: please install: %s\n' "$who" "${missing[*]}" >&2
    exit 16
fi
printf '%s: installing %s\n' "$who" "${missing[*]}" >&2
# No service starts by itself: who needs one starts it, on loopback.
if ! [ -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
