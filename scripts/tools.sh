#!/usr/bin/env bash
# Installs the few distribution packages that fp4forge runs on the host.
set -euo pipefail

say() { printf 'tools: %s\n' "$*" >&2; }

missing=()
while read -r program package; do
    command -v "$program" >/dev/null || missing+=("$package")
done <<'EOF'
skopeo skopeo
debootstrap debootstrap
patch patch
curl curl
git git
EOF
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

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
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
