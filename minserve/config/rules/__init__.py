"""Which switches go together: the rules of each room, in the order in which they are asked.

A new rule is a function in its room's file and a line in that file's `RULES`. It stands in the room
of the switch it is about: the field that its sentence names first.
"""

from minserve.config.question import Rule
from minserve.config.rules import device, kernels, memory, scheduling, virtual

RULES: tuple[Rule, ...] = (
    *device.RULES,  # Everything else depends on device and number format.
    *virtual.RULES,  # On modelled time most of what follows would be beside the point.
    *scheduling.RULES,  # Settles the lengths.
    *kernels.RULES,
    *memory.RULES,  # Last, because sizes in bytes need the lengths.
)
"""All rules. Each finds what those before it have filled in."""

__all__ = ["RULES"]
