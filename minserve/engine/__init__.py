"""The engine: `add`, `abort`, `step`, and what each of them needs.

`loop` is the engine itself. Around it: `admission` (may this request be served?), `prepare` (a plan
becomes a batch), `commit` (results go to their requests), `record` (a step's trace), `recovery`
(which requests an error ends) and `pins` (prefixes that stay in the cache).
"""

from minserve.engine.loop import Engine

__all__ = ["Engine"]
