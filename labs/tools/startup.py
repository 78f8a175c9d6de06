"""Runs in every kernel that `make lab` starts: an error says which cell to run first.

Once a chapter has imported `widgets` that is so anywhere; this is for a kernel in which nothing ran
yet. It leaves no name behind.
"""

__import__("widgets")
