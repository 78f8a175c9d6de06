"""How decode attention cuts a context into parts (flash-decoding, Dao et al., 2023).

One query per request leaves a GPU idle: 4 requests with 8 KV heads are 32 programs for 132
multiprocessors. Parts of the context are more programs, and more to join afterwards. Plain numbers,
so that the choice can be looked at where no Triton is installed.
"""

from __future__ import annotations

LEAST_KEYS = 128
"""Keys a part is worth a program for."""
PROGRAMS_PER_PROCESSOR = 2
"""Programs that hide each other's waits for memory."""


def num_splits(num_programs: int, longest: int, num_processors: int) -> int:
    """Parts of each context, so that the programs of one layer fill the device: `num_programs`
    is requests times KV heads, `longest` the longest context in tokens."""
    wanted = -(-PROGRAMS_PER_PROCESSOR * num_processors // num_programs)
    return max(1, min(wanted, -(-longest // LEAST_KEYS)))
