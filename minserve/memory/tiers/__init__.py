"""Slower memory below the device: host and disk, and whether loading from them is faster."""
