#!/usr/bin/env bash
# Prepares a GitHub-hosted runner; does nothing anywhere else.
#   hosted-runner.sh           install the host tools
#   hosted-runner.sh --room    also free disk and switch Docker to the containerd image store
set -euo pipefail
cd "$(dirname "$0")"

[ "${RUNNER_ENVIRONMENT:-}" = github-hosted ] || exit 0
sudo ./tools.sh
[ "${1:-}" = --room ] || exit 0
# Python stays: actions/setup-python puts it under /opt/hostedtoolcache.
sudo rm -rf /usr/share/dotnet /usr/share/swift /usr/share/miniconda /usr/local/lib/android \
    /usr/local/share/powershell /usr/local/.ghcup /opt/ghc /opt/az /opt/google /opt/microsoft \
    /opt/hostedtoolcache/{CodeQL,go,Java_Temurin-Hotspot_jdk,node,PyPy,Ruby}
echo '{"features": {"containerd-snapshotter": true}}' | sudo tee /etc/docker/daemon.json >/dev/null
sudo systemctl restart docker
df -h / >&2
