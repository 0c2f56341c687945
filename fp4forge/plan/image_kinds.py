"""What an image is for; the command line reads it, so nothing is imported here."""

SERVE, QUANTISE = "serve", "quantise"
# Each kind has a repository of its own.
REPOSITORIES = {SERVE: "fp4forge/vllm", QUANTISE: "fp4forge/quantise"}
KINDS = tuple(REPOSITORIES)
