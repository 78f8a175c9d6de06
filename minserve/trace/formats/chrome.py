"""A trace in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

The engine is one process with a lane of steps, a lane of stages, and counters of KV memory and
tokens; requests are another process with a lane each. Times are microseconds from the first event.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minserve.request import RequestMetrics
from minserve.trace.formats.export import write_file
from minserve.trace.snapshot import TraceSnapshot
from minserve.trace.step import StepTrace

_Event = dict[str, Any]

_ENGINE, _REQUESTS = 1, 2
_STEPS_LANE, _STAGES_LANE = 1, 2
_STAGES = ("schedule", "prepare", "forward", "sample", "commit")


def events(snapshot: TraceSnapshot) -> list[_Event]:
    """All events of a trace."""
    origin = min(
        [step.start_s for step in snapshot.steps[:1]]
        + [request.metrics.arrival_s for request in snapshot.requests],
        default=0.0,
    )
    name = f"engine: {snapshot.header.model or 'model not named'} ({snapshot.header.provenance})"
    found = [
        _label("process_name", _ENGINE, name),
        _label("thread_name", _ENGINE, "steps", _STEPS_LANE),
        _label("thread_name", _ENGINE, "stages", _STAGES_LANE),
    ]
    for step in snapshot.steps:
        found += _step_events(step, origin)
    if snapshot.requests or any(step.requests for step in snapshot.steps):
        found += _request_events(snapshot, origin)
    return found


def write(snapshot: TraceSnapshot, path: str | Path) -> None:
    """Write the events to a JSON file, completely or not at all. Raises OSError."""
    document = {
        "traceEvents": events(snapshot),
        "displayTimeUnit": "ms",
        "otherData": asdict(snapshot.header),
    }
    write_file(json.dumps(document, separators=(",", ":")).encode(), Path(path))


def _label(kind: str, pid: int, name: str, tid: int = 0) -> _Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(
    name: str, pid: int, tid: int, start_us: float, duration_us: float, args: _Event | None = None
) -> _Event:
    event: _Event = {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": start_us,
        "dur": max(0.0, duration_us),
    }
    if args:
        event["args"] = args
    return event


def _counter(name: str, at_us: float, values: dict[str, int]) -> _Event:
    return {"ph": "C", "name": name, "pid": _ENGINE, "tid": 0, "ts": at_us, "args": values}


def _step_events(step: StepTrace, origin: float) -> list[_Event]:
    start = (step.start_s - origin) * 1e6
    args = {
        "scheduled": step.num_scheduled,
        "prefill tokens": step.num_prefill_tokens,
        "decode tokens": step.num_decode_tokens,
        "recomputed tokens": step.num_recomputed_tokens,
        "sampled tokens": step.num_sampled_tokens,
        "proposed tokens": sum(step.speculation.proposed_tokens),
        "accepted tokens": sum(step.speculation.accepted_tokens),
        "preempted": step.num_preempted,
        "finished": step.num_finished,
        "GFLOP": step.work.flops / 1e9,
        "MB moved at least": step.work.bytes / 1e6,
    }
    found = [_slice(f"step {step.index}", _ENGINE, _STEPS_LANE, start, step.duration_s * 1e6, args)]
    at = start
    for stage in _STAGES:
        duration = getattr(step.stages, f"{stage}_s") * 1e6
        if duration <= 0:
            continue
        found.append(_slice(stage, _ENGINE, _STAGES_LANE, at, duration))
        if stage == "forward" and step.stages.attention_s > 0:
            # One slice for the sum over layers: the trace knows the total, not the
            # times of each layer.
            name, attention = "attention, all layers", step.stages.attention_s * 1e6
            found.append(_slice(name, _ENGINE, _STAGES_LANE, at, min(duration, attention)))
        at += duration
    found += [
        _counter(
            "KV bytes",
            start,
            {
                "used": step.kv_bytes_used,
                "allocated, unused": max(0, step.kv_bytes_allocated - step.kv_bytes_used),
            },
        ),
        _counter(
            "batch tokens",
            start,
            {"prefill": step.num_prefill_tokens, "decode": step.num_decode_tokens},
        ),
        _counter("requests", start, {"running": step.num_running, "waiting": step.num_waiting}),
    ]
    return found


def _request_events(snapshot: TraceSnapshot, origin: float) -> list[_Event]:
    """A lane per sample: its steps if they were kept, otherwise its phases."""
    found = [_label("process_name", _REQUESTS, "requests")]
    lanes: dict[tuple[str, int], int] = {}

    def lane(request_id: str, sample: int) -> int:
        key = (request_id, sample)
        if key not in lanes:
            lanes[key] = len(lanes) + 1
            name = request_id if sample == 0 else f"{request_id} sample {sample}"
            found.append(_label("thread_name", _REQUESTS, name, lanes[key]))
        return lanes[key]

    detailed = False
    for step in snapshot.steps:
        start, duration = (step.start_s - origin) * 1e6, step.duration_s * 1e6
        for part in step.requests:
            detailed = True
            name = "decode" if part.num_known == 1 else f"{part.num_known} tokens"
            if part.num_proposed:
                name += f", {part.num_accepted} of {part.num_proposed} accepted"
            if part.num_recomputed:
                name += f", {part.num_recomputed} again"
            args = {
                "step": step.index,
                "from position": part.start,
                "new tokens": list(part.new_token_ids),
                "pages": len(part.blocks),
            }
            tid = lane(part.request_id, part.sample_index)
            found.append(_slice(name, _REQUESTS, tid, start, duration, args))
    for request in snapshot.requests:
        tid = lane(request.request_id, request.sample_index)
        for name, begin, end in _phases(request.metrics):
            if name == "waiting" or not detailed:
                found.append(
                    _slice(name, _REQUESTS, tid, (begin - origin) * 1e6, (end - begin) * 1e6)
                )
    return found


def _phases(metrics: RequestMetrics) -> list[tuple[str, float, float]]:
    """(name, begin, end) in seconds of the known phases of a request."""
    marks = [
        ("waiting", metrics.arrival_s),
        ("to the first token", metrics.first_scheduled_s),
        ("further tokens", metrics.first_token_s),
    ]
    ends = [metrics.first_scheduled_s, metrics.first_token_s, metrics.finished_s]
    return [
        (name, begin, end)
        for (name, begin), end in zip(marks, ends, strict=True)
        if begin is not None and end is not None
    ]
