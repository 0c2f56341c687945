"""What keeps a release's inputs current."""
