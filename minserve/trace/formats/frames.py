"""A trace as pandas data frames. pandas is imported only when a frame is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minserve.trace.schema import REQUESTS, STEPS
from minserve.trace.snapshot import TraceSnapshot

if TYPE_CHECKING:
    import pandas

_LATENCIES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")


def steps_dataframe(snapshot: TraceSnapshot) -> pandas.DataFrame:
    """One row per step; `attrs` say where the run comes from."""
    frame = _frame(STEPS.names, [STEPS.row(step) for step in snapshot.steps], snapshot)
    frame["duration_s"] = frame["end_s"] - frame["start_s"]
    frame["num_tokens"] = frame["num_prefill_tokens"] + frame["num_decode_tokens"]
    frame["flops"] = frame["linear_flops"] + frame["attention_flops"]
    frame["bytes"] = frame[
        ["weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes"]
    ].sum(axis=1)
    return frame


def requests_dataframe(snapshot: TraceSnapshot) -> pandas.DataFrame:
    """One row per finished request, with its latencies in seconds."""
    rows = [
        (*REQUESTS.row(request), *(getattr(request.metrics, name) for name in _LATENCIES))
        for request in snapshot.requests
    ]
    return _frame((*REQUESTS.names, *_LATENCIES), rows, snapshot)


def _frame(
    columns: Sequence[str], rows: list[tuple[Any, ...]], snapshot: TraceSnapshot
) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "a trace becomes a data frame with pandas, which is not installed: "
            "pip install 'minserve[lab]'"
        ) from None
    frame = pandas.DataFrame(rows, columns=list(columns))
    frame.attrs = {
        "model": snapshot.header.model,
        "device": snapshot.header.device,
        "provenance": snapshot.header.provenance,
    }
    return frame
