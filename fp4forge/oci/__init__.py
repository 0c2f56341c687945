"""References, layouts, registries and the Docker engine."""
