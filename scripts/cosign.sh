#!/usr/bin/env bash
# Installs cosign (2.5 or newer), which signs images and checks signatures, where the distribution
# has it: Debian from 13 on. Elsewhere it says where to get it and ends well: only signing needs it.
set -euo pipefail
cd "$(dirname "$0")"

if type -P cosign >/dev/null; then
    exit 0
fi
# Not through a pipe: grep -q ends before apt-cache does, and with pipefail that counts as a failure.
if command -v apt-cache >/dev/null && [[ $(apt-cache policy cosign) == *"Candidate: "[0-9]* ]]; then
    exec ./install.sh 'signing tools' <<<'cosign cosign'
fi
echo "NOT INSTALLED: cosign; this distribution has no package of it (Debian 13 has). Tests of" \
    "signatures are skipped. https://docs.sigstore.dev/cosign/system_config/installation/" >&2
