#!/usr/bin/env bash
# Installs what only the end-to-end tests need: a browser to look at pages, an ssh server, network
# namespaces, a Redis, Prometheus (no service starts), and cosign.
set -euo pipefail
cd "$(dirname "$0")"

./install.sh 'test tools' <<'EOF'
chromium chromium
chromium fonts-dejavu-core
sshd openssh-server
ssh openssh-client
ip iproute2
redis-server redis-server
prometheus prometheus
EOF
./cosign.sh
