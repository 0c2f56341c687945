"""The one place of limits: how long anything from outside may take, and how large it may be."""

from __future__ import annotations

REGISTRY_CONNECT_SECONDS = 10
REGISTRY_SECONDS = 60  # one answer of a registry's API, from the request to its last byte
MANIFEST_BYTES = 4 << 20  # the distribution specification's limit for a manifest
COPY_SILENCE_SECONDS = 600  # without a line from a program that copies blobs
INPUT_BYTES = (
    256 << 10
)  # a release, the bases, the defaults or a patch series: ten times the largest
INPUT_DEPTH = 20  # levels of lists and mappings in such a file
INPUT_VALUES = 5_000  # values in it, each alias counted with all that it stands for
