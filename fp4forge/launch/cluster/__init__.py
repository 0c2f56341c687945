"""One model over several machines: vLLM's own multi-node start, from this machine by ssh."""
