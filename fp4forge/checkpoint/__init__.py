"""A model's checkpoint as it lies on disk: read from its headers, inspected, fetched."""
