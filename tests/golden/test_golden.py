"""Tokens and traces of whole runs are those that were written down (`runs.py`), one by one.

The files were written in version 3 of the trace's JSON: this also holds that old traces load.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from golden.runs import GOLDEN, facts, recorded

from minserve.trace import RunTrace

UNTIMED = {
    "num_arrived": 0, "interarrival_s": (),
    "num_prompt_tokens": 0, "ttft_s": (), "itl_s": (), "itl_counts": (),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_and_trace_are_those_that_were_written_down(name):
    was_recorded = recorded(name)
    requests, text = GOLDEN[name]()
    assert facts(requests) == was_recorded["requests"]
    was = RunTrace.from_json(json.dumps(was_recorded["trace"])).snapshot()
    now = RunTrace.from_json(text).snapshot()
    for old, new in zip(was.steps, now.steps, strict=True):
        # Host memory is counted since version 4, and waits are kept since later still.
        assert replace(new, blocks=replace(new.blocks, host_bytes=0), **UNTIMED) == old
    assert now.requests == was.requests
    assert replace(now.totals, peak_host_bytes=0, prompt_tokens=0, arrived=0) == was.totals
