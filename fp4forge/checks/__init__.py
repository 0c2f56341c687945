"""What an image must pass before a tag names it."""
