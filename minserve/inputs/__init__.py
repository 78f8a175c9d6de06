"""Checks and copies what a caller sends. Knows no model and no engine."""
