"""Measurements against named peers, one a file."""
