"""Exercises: how a reader's solution is called, judged, and talked about."""
