"""From BF16 weights to a checked NVFP4 checkpoint."""
