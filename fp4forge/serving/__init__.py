"""From image to a working server: memory, settings, manifests, and finding what is wrong."""
