"""The engine: `add`, `abort`, `step`, and what each of them needs.

`loop` is the engine itself. Around it: `admission` (checks that a request can be served), `prepare`
(turns a plan into a batch), `commit` (gives results to their requests), `record` (writes a step's
trace), `recovery` (which requests an error ends) and `pins` (prefixes that stay in the cache).
"""

from minserve.engine.loop import Engine

__all__ = ["Engine"]
