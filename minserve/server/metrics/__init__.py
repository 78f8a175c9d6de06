"""Prometheus metrics of one engine, made from its trace.

Names begin with `vllm:` where vLLM has a metric of the same meaning (its engine V1), with the same
labels and unit: dashboards, alerts and benchmark tools that were written for vLLM then work
without a change. What vLLM does not have begins with `minserve:`. `names` lists them all; buckets
have vLLM's bounds and smaller ones, because small models answer in less than its smallest.

Nothing here runs in the engine's steps: `observed` reads what is new in the trace when a scrape
comes (`trace.tail` says why it misses nothing), and counters are the trace's own totals.
"""

from minserve.server.metrics.engine import EngineMetrics

__all__ = ["EngineMetrics"]
