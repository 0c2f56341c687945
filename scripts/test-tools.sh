#!/usr/bin/env bash
# Installs what only the end-to-end tests need: a browser to look at pages, an ssh server, network
# namespaces and a Redis.
set -euo pipefail

say() { printf 'test tools: %s\n' "$*" >&2; }

missing=()
while read -r program package; do
    [ -n "$(PATH=$PATH:/usr/sbin:/sbin type -P "$program")" ] || missing+=("$package")
done <<'EOF'
chromium chromium
fc-list fontconfig
sshd openssh-server
ssh openssh-client
ip iproute2
redis-server redis-server
EOF

if [ "${#missing[@]}" = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "please install: ${missing[*]}"
    exit 16
fi
say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# No service is to start by itself: the tests start their own, on loopback or in namespaces.
if ! [ -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
apt-get install -qq -y --no-install-recommends "${missing[@]}" fonts-dejavu-core >/dev/null
