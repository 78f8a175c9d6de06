"""Reads files that another program may have written: with bounds and checks, or refused
with a sentence."""
