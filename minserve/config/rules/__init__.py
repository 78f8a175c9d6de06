"""Which switches can be combined: the rules of each room, in the order in which they are applied.

A new rule is a function in its room's file and a line in that file's `RULES`. Its room is that of
the field that its message names first.
"""

from minserve.config.question import Rule
from minserve.config.rules import decoding, device, kernels, memory, scheduling, virtual

RULES: tuple[Rule, ...] = (
    *device.RULES,  # Everything else depends on device and number format.
    *virtual.RULES,  # On modelled time, most other rules have nothing to check.
    *scheduling.RULES,  # Settles the lengths.
    *decoding.RULES,
    *kernels.RULES,
    *memory.RULES,  # Last, because sizes in bytes need the lengths.
)
"""All rules. Each sees the values that the rules before it have filled in."""

__all__ = ["RULES"]
