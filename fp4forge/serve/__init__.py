"""From an image to a working server."""
