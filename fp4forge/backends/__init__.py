"""What vLLM selects: a release's own selection code, asked on a CPU inside its image."""
