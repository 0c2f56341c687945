#!/usr/bin/env bash
# Installs the headless browser in which the end-to-end tests look at pages.
set -euo pipefail
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    printf 'browser: please install chromium\n' >&2
    exit 16
fi
printf 'browser: installing chromium\n' >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null
