"""Patterns of what images are called (OCI distribution specification 1.1, "Pulling manifests")."""

from __future__ import annotations

TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
DIGEST = r"sha256:[0-9a-f]{64}"
# A hub's image with its tag, as a file of ours names one.
TAGGED = rf"[a-z0-9][A-Za-z0-9._:/-]*:{TAG}"
