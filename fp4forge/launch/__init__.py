"""Starts servers on this machine, and keeps what is known of each."""
