"""Memory that this process has freed and its C library still holds.

Loading packs one matrix after the other, so the heap ends with holes as large as matrices: on glibc
up to a third of a model's size, which the system could use for pages of keys and values. Knows
nothing about tensors.
"""

from __future__ import annotations

import ctypes


def return_freed() -> bool:
    """Give freed memory back to the system. False where the C library cannot be asked to, as
    outside of Linux and with musl."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return False
    trim(0)
    return True
