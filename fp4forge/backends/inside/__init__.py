"""Runs inside the image: needs vLLM and torch there, and nothing of this project."""
