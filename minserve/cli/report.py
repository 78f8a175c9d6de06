"""The line of figures after a run, each compared with the limit of the machine it
was measured on."""

from __future__ import annotations

import sys

from minserve.hardware import Ceilings, machine_ceilings, roofline
from minserve.hardware.ceilings import kept_ceilings
from minserve.llm import LLM


def ceilings_of(llm: LLM) -> Ceilings:
    """This machine's ceilings for the LLM's device and number format; prints a
    message if it measures."""
    device, dtypes = llm.config.device, (llm.config.config.dtype,)
    if kept_ceilings(device, dtypes) is None:
        print("measuring this machine's limits once, a few seconds ...", file=sys.stderr)
    return machine_ceilings(device, dtypes=dtypes)


def roofline_figure(llm: LLM) -> str | None:
    """Least time that the last run's counted work could take here, divided by the time it took.

    Returned as text, because there is no percentage if the machine was busy while its
    limits were measured.
    """
    steps = llm.trace.steps
    busy_s = sum(step.duration_s for step in steps)
    if not busy_s:
        return None
    limits = ceilings_of(llm)
    dtype = llm.config.config.dtype
    if limits.disturbed:
        return "roofline not known: this machine was busy while its limits were measured"
    try:
        share = sum(roofline(step.work, limits, dtype).bound_s for step in steps) / busy_s
    except ValueError:
        return None  # No ceiling for this number format on this machine.
    if share > 1:
        return "faster than this machine's measured limits: it was busy when they were measured"
    return f"{share:.0%} of this machine's roofline ({dtype})"


def figures(llm: LLM) -> str:
    """One line: tokens (and how many came from a cache), TTFT, TPOT, tokens/s, KV bytes, percent
    of the roofline."""
    totals = llm.trace.totals
    parts = []
    records = llm.trace.requests
    if len(records) > 1:  # times are those of each request: `generate --json` has them
        tokens = f"{totals.finished_prompt_tokens} tokens in, {totals.finished_output_tokens} out"
        parts.append(f"{totals.finished_requests} requests, {tokens}")
    elif records:
        metrics = records[0].metrics
        cached = f" ({metrics.num_cached_tokens} cached)" if metrics.num_cached_tokens else ""
        tokens_in = f"{metrics.num_prompt_tokens} tokens in{cached}"
        parts.append(f"{tokens_in}, {metrics.num_output_tokens} out")
        if metrics.ttft_s is not None:
            parts.append(f"TTFT {metrics.ttft_s * 1e3:.1f} ms")
        if metrics.tpot_s is not None:
            parts.append(f"TPOT {metrics.tpot_s * 1e3:.2f} ms")
    if totals.busy_s > 0:
        parts.append(f"{totals.sampled_tokens / totals.busy_s:.0f} tokens/s")
    parts.append(f"KV {totals.peak_kv_bytes_allocated / 1e6:.2f} MB")
    limit = roofline_figure(llm)
    if limit is not None:
        parts.append(limit)
    return " | ".join(parts)
