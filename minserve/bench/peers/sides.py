"""The interface of a side in a race: our engine, or a peer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from minserve.bench.metrics import Run
from minserve.bench.workloads.workload import WorkItem, Workload


class PeerUnavailableError(RuntimeError):
    """A peer that cannot run here. The message says why, and what to do."""


@dataclass(frozen=True)
class Stream:
    """One request served alone."""

    ttft_s: float
    tpot_s: float
    """(end to end - TTFT) / (n - 1)."""
    token_ids: tuple[int, ...]

    @property
    def e2e_s(self) -> float:
        """From the call to the last token."""
        return self.ttft_s + self.tpot_s * (len(self.token_ids) - 1)


class Side(Protocol):
    """An engine that serves a workload. Sides take turns: none computes while another runs."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that was chosen: versions, precision, threads, batch sizes."""
        ...

    def throughput(self, workload: Workload) -> Run:
        """Serve all requests as fast as possible."""
        ...

    def stream(self, item: WorkItem) -> Stream:
        """Serve one request alone."""
        ...

    def close(self) -> None:
        """Free memory and end processes."""
        ...
