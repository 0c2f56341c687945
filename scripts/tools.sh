#!/usr/bin/env bash
# Installs the few distribution packages that fp4forge runs on the host. mmdebstrap asks arch-test
# whether this machine runs another platform's programs.
set -euo pipefail
cd "$(dirname "$0")"

venv=$(python3 -c 'import ensurepip, venv' 2>/dev/null || echo no-venv python3-venv)
./install.sh tools <<EOF
skopeo skopeo
mmdebstrap mmdebstrap
arch-test arch-test
patch patch
curl curl
git git
$venv
EOF
