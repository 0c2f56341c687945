#!/usr/bin/env bash
# Gives this machine an image registry on loopback (Debian's docker-registry).
# A registry that already answers at the address is used as it is.
set -euo pipefail

address=${1:-127.0.0.1:5000}
state=${FP4FORGE_STATE:-/var/lib/fp4forge}

say() { printf 'registry: %s\n' "$*" >&2; }
answers() { curl -fsS --noproxy '*' -o /dev/null --max-time 3 "http://$address/v2/" 2>/dev/null; }

case $address in
127.*:* | localhost:*) ;;
*)
    say "$address is not on loopback: only a loopback registry is started here; log in to yours with 'docker login'"
    exit 5
    ;;
esac
if answers; then
    say "$address answers"
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "nothing answers at $address: start a registry there, or give REGISTRY=HOST/PATH"
    exit 5
fi

export DEBIAN_FRONTEND=noninteractive
if ! command -v docker-registry >/dev/null; then
    say "installing docker-registry"
    apt-get update -qq
    # The package would start itself on every interface; here it must listen on loopback only.
    ln -sf /dev/null /etc/systemd/system/docker-registry.service
    apt-get install -qq -y --no-install-recommends docker-registry curl >/dev/null
fi

mkdir -p "$state/registry"
cat >"$state/registry.yml" <<EOF
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $state/registry}
  delete: {enabled: true}
http: {addr: "$address"}
EOF
setsid nohup docker-registry serve "$state/registry.yml" >"$state/registry.log" 2>&1 </dev/null &
for _ in $(seq 20); do
    if answers; then
        say "$address serves $state/registry"
        exit 0
    fi
    sleep 0.25
done
tail -n 5 "$state/registry.log" >&2 || true
say "the registry did not answer at $address within 5 s"
exit 5
