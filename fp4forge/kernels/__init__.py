"""GPUs, arch lists and device code; closed: the standard library only."""
