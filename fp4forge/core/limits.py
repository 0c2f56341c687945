"""The one place of limits: how long anything from outside may take, and how large it may be.

``kernels`` imports nothing, so its own limits are in ``cubins.py`` and ``elf.py``.
"""

from __future__ import annotations

# Registries (OCI distribution specification 1.1).
REGISTRY_CONNECT_SECONDS = 10
REGISTRY_SECONDS = 60  # one answer of a registry's API, from the request to its last byte
REGISTRY_PAUSES = (0.2, 1.0)  # seconds before a read is repeated that met a server's error (5xx)
REGISTRY_REDIRECTS = 5  # a blob may lie in another store
MANIFEST_BYTES = 4 << 20  # the distribution specification's limit for a manifest
TAG_PAGES = 100  # of a repository's list of tags, 1,000 each
INDEX_DEPTH = 4  # indexes in indexes; an image of several platforms needs two
INDEX_ENTRIES = 256  # of one index or manifest: each is asked for
TURN_SECONDS = 600  # until another publisher on this machine has moved its tags
COPY_SILENCE_SECONDS = 600  # without a line from a program that copies blobs
PULL_SILENCE_SECONDS = 600  # without an event from an engine that pulls an image
BUILD_SILENCE_SECONDS = 3600  # without an event of a build: one unit compiles for 10 minutes

# This project's own YAML: a release, the bases, the defaults or a patch series.
INPUT_BYTES = 256 << 10  # ten times the largest
INPUT_DEPTH = 20  # levels of lists and mappings
INPUT_VALUES = 5_000  # values, each alias counted with all that it stands for

# The package index (PEP 691).
INDEX_SECONDS = 60
INDEX_BYTES = 64 << 20  # one project's files
FETCHED_BYTES = 8 << 30
FETCH_SECONDS = 4 * 3600  # one file of the index

# Advisories (OSV).
OSV_SECONDS = 60  # one answer of the service
OSV_BYTES = 16 << 20  # one record, or one answer; the largest records have some 2 MB
OSV_FILES = 1_000_000  # of a folder; all of OSV has some 500,000
OSV_PAGES = 100  # of one package

# Model servers.
SERVER_BYTES = 4 << 20  # one answer; 2,048 tokens as a stream have some 600 KB
ANSWER_CHARACTERS = 100_000  # of a model's text
SERVER_SECONDS = 10  # /health and /v1/models
LONG_ANSWER_SECONDS = 600  # to a prompt of 32,768 tokens

# Benchmarks.
BENCH_BYTES = 512 << 20  # one trial's result; 256 requests of 1,000 tokens have some 6 MB
METRICS_BYTES = 16 << 20  # /metrics
TRIAL_SECONDS = 3600  # one run of the load generator
TOKENIZE_SECONDS = 60  # /tokenize, of a prompt of any length

# Files that a user names, and what lies in images and bundles.
CONFIG_BYTES = 16 << 20  # config.json, docker inspect, a compose file, an index of tensors' files
HEADER_BYTES = 100_000_000  # safetensors' own limit for its header
LOG_BYTES = 64 << 20
LOG_LINE_CHARACTERS = 4000
RECORD_BYTES = 256 << 20  # plan, ledger and patches in an image
YAML_DEPTH = 64
YAML_NODES = 100_000  # with every alias written out
COUNT = 10_000_000  # experts, heads, sizes of a layer: more is a broken file
LAYERS = 10_000
DIMENSIONS = 16  # of a tensor

# Wheels and bundles.
ENTRIES = 100_000  # files of an archive
UNPACKED_BYTES = 64 << 30  # all of them together
UNPACKED_RATIO = 100  # unpacked bytes for each packed one; device code has about 3

# Programs that this one runs.
COLLECT_SECONDS = 900  # packing compile caches, or copying them out of a container
PROGRAM_SECONDS = 120  # docker and its plugins, asked for a fact
LOAD_SECONDS = 3600  # docker load of a whole image
BACKENDS_SILENCE_SECONDS = 300

# cosign: one signature is stored in half a second; keyless, a person may have to log in.
SIGN_SECONDS = 300
SIGNATURE_SECONDS = 60

# An image's files and their packages: 100,000 are read in 5 s; emulated, or on a slow disk, longer.
INVENTORY_SECONDS = 900

# Quantising.
QUANTISE_SILENCE_SECONDS = 3600  # without a line: loading 50 GB, or a search through one layer
QUANTISE_CPU_BYTES = 4 << 30  # weights of a model that a CPU quantises without --allow-cpu

# What is shown of foreign text.
SHOWN_CHARACTERS = 4000
