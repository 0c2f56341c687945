#!/usr/bin/env bash
# Gives this machine a Docker engine with buildx and the containerd image store.
# An engine that already answers is used as it is: never reconfigured, never stopped.
set -euo pipefail

state=${FP4FORGE_STATE:-/var/lib/fp4forge}

say() { printf 'engine: %s\n' "$*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

answers() { command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
has_buildx() { docker buildx version >/dev/null 2>&1; }

report() {
    say "Docker $(docker version --format '{{.Server.Version}}'), $(docker buildx version | cut -d' ' -f2), store $(docker info --format '{{.Driver}}')"
}

if answers && has_buildx; then
    report
    exit 0
fi
answers && die "an engine answers, but this client has no buildx: install Docker's buildx plugin" 4

# No engine answers. This script sets one up on Debian only, as root.
[ "$(id -u)" = 0 ] || die "no Docker engine answers and this user is not root: start one, or run as root" 4
command -v apt-get >/dev/null || die "no Docker engine answers and this is not Debian: install Docker with buildx" 4

export DEBIAN_FRONTEND=noninteractive
has_candidate() { [[ $(apt-cache policy "$1") == *"Candidate: "[0-9]* ]]; }
say "reading package lists"
apt-get update -qq
from=
if [ -e /etc/apt/preferences.d/fp4forge-trixie ] || ! has_candidate docker-buildx; then
    # bookworm's docker.io is 20.10 and has no buildx. The next suite's runs on bookworm's libc, but
    # only these packages may come from there: a whole target release (-t trixie) brings its runc,
    # with it libc6, and makes another distribution of the host. A pin of 50 lets nothing else in.
    from=/trixie
    printf 'Package: *\nPin: release n=trixie*\nPin-Priority: 50\n' >/etc/apt/preferences.d/fp4forge-trixie
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed '/^#/d; /^Suites:/s/bookworm/trixie/g' /etc/apt/sources.list.d/debian.sources \
            >/etc/apt/sources.list.d/fp4forge-trixie.sources
    else
        sed -n 's/bookworm/trixie/gp' /etc/apt/sources.list >/etc/apt/sources.list.d/fp4forge-trixie.list
    fi
    apt-get update -qq
    has_candidate docker-buildx || die "no package docker-buildx in Debian's bookworm or trixie: install Docker with buildx" 4
fi

# The image store is chosen before the first start; a configuration that is there is left alone.
# By default BuildKit keeps a tenth of the disk, and drops the compile's own folder for the layers.
if [ ! -e /etc/docker/daemon.json ]; then
    mkdir -p /etc/docker
    cat >/etc/docker/daemon.json <<'JSON'
{"features": {"containerd-snapshotter": true},
 "builder": {"gc": {"enabled": true, "defaultKeepStorage": "60GB"}}}
JSON
fi

say "installing docker.io, docker-buildx and docker-compose"
apt-get install -qq -y --no-install-recommends ca-certificates iptables runc \
    "docker.io$from" "docker-cli$from" "docker-buildx$from" "docker-compose$from" "containerd$from" >/dev/null

if [ -d /run/systemd/system ]; then
    systemctl start docker
elif ! answers; then
    mkdir -p "$state"
    say "starting dockerd (log: $state/dockerd.log)"
    # In /: BuildKit fetches git sources in its working directory, and a checkout may be deleted.
    setsid nohup env --chdir=/ dockerd --pidfile "$state/dockerd.pid" >"$state/dockerd.log" 2>&1 </dev/null &
fi

for _ in $(seq 60); do
    if answers; then
        report
        exit 0
    fi
    sleep 0.5
done
tail -n 5 "$state/dockerd.log" >&2 || true
die "the engine did not answer within 30 s" 4
