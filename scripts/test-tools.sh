#!/usr/bin/env bash
# Installs what only the end-to-end tests need: a browser to look at pages, an ssh server, network
# namespaces, a Redis, and cosign.
set -euo pipefail
cd "$(dirname "$0")"

./install.sh 'test tools' <<'EOF'
chromium chromium
chromium fonts-dejavu-core
sshd openssh-server
ssh openssh-client
ip iproute2
redis-server redis-server
EOF
./cosign.sh
