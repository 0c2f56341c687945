"""Runs in a Python that has ModelOpt and torch; imports nothing of fp4forge."""
