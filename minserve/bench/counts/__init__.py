"""Figures that are counted, not timed: launches, bytes, floors, and the time outside operators."""
