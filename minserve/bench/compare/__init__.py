"""One base configuration against a few variants of it, over one workload, on either clock.

- `setup`: what is compared, as data that fits into a text
- `gpu`: the device of the virtual clock
- `workload`, `kinds`, `listed`: which requests arrive
- `code`: a setup as a short text, and back
- `words`: a setup as the words of `minserve bench compare`, and back
- `command`: that command
"""

# A workload is one of the kinds, so they are there as soon as anything of this room is.
from minserve.bench.compare import kinds

__all__ = ["kinds"]
