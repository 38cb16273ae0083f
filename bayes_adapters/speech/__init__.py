"""Recordings: read, corrupted as the world corrupts them, and verified against a text."""
