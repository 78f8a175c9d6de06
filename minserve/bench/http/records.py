"""What happened to each request of a run, and the figures of all of them.

Every time is in seconds of the client's clock since the run began. A request's times count from
when it was *scheduled*, not from when it was sent: a client that waits for a slow server before it
sends the next request would otherwise leave the slowness out ("coordinated omission", Tene 2013).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from minserve.bench.metrics import Run, Slo, serve_result
from minserve.request import RequestMetrics
from minserve.trace.summary import distribution

if TYPE_CHECKING:
    import pandas

Status = Literal["completed", "refused", "failed", "timed_out", "interrupted"]


@dataclass
class RequestRecord:
    """One request, filled in while it runs."""

    number: int
    scheduled_s: float
    """When it was to be sent."""
    due_s: float = 0.0
    """When it could be sent: `scheduled_s`, or later when it waited for a free client
    (`max_concurrency`)."""
    sent_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    """When its last token or its finish reason arrived, or when it was known to have failed."""
    deliveries_s: list[float] = field(default_factory=list, repr=False)
    """When events with tokens arrived; one event may bring several tokens."""
    num_prompt_tokens: int = 0
    """As the server counts them, or else as sent."""
    num_output_tokens: int = 0
    """As the server counts them, or else one for each delivery (`is_estimated`)."""
    is_estimated: bool = False
    status: Status = "interrupted"
    http_status: int | None = None
    error: str = ""
    retry_after_s: float | None = None
    """What a server that refused a request said about when to try again."""
    finish_reason: str | None = None
    text: str = field(default="", repr=False)

    @property
    def late_s(self) -> float:
        """How long after it was due the client sent it: the client's own fault."""
        return 0.0 if self.sent_s is None else self.sent_s - self.due_s

    @property
    def ttft_from_send_s(self) -> float | None:
        """Time to first token from when it was really sent."""
        if self.first_token_s is None or self.sent_s is None:
            return None
        return self.first_token_s - self.sent_s

    @property
    def itl_s(self) -> list[float]:
        """Times between its deliveries."""
        times = self.deliveries_s
        return [after - before for before, after in pairwise(times)]

    @property
    def metrics(self) -> RequestMetrics:
        """Its times in the form that every benchmark has. The client does not see when the server
        began."""
        return RequestMetrics(
            arrival_s=self.scheduled_s,
            first_scheduled_s=None,
            first_token_s=self.first_token_s,
            finished_s=self.ended_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=0,
        )


@dataclass(frozen=True)
class PlayResult:
    """All requests of a run that were due before its end, in order."""

    records: tuple[RequestRecord, ...] = field(repr=False)
    num_requests: int
    """Requests of the whole traffic."""
    duration_s: float
    """From the first request's schedule to the last one's end."""
    client_cpu_s: float
    """CPU time of the client's thread."""
    max_concurrency: int | None
    rate_per_s: float | None
    """Mean requests per second; None: no schedule, all were due at the start or as soon as one of
    `max_concurrency` clients was free."""
    model: str = ""
    """The name under which the server serves it."""
    lags_s: tuple[float, ...] = field(default=(), repr=False)
    """How long the client, several times a second, took to react."""

    @property
    def is_complete(self) -> bool:
        """False if the run was stopped before every request had ended."""
        ended = [record for record in self.records if record.status != "interrupted"]
        return len(ended) == self.num_requests

    def of(self, status: Status) -> list[RequestRecord]:
        """The requests that ended like this."""
        return [record for record in self.records if record.status == status]

    @property
    def client_load(self) -> float:
        """Share of one core that the client used."""
        return self.client_cpu_s / self.duration_s if self.duration_s else 0.0

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures must know, a sentence each."""
        return [*_client_warnings(self), *_answer_warnings(self)]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per request, times in seconds. Raises ImportError without pandas."""
        import pandas

        names = [item.name for item in fields(RequestRecord) if item.name != "deliveries_s"]
        rows = [
            {name: getattr(record, name) for name in names}
            | {name: getattr(record.metrics, name) for name in ("ttft_s", "tpot_s", "e2e_s")}
            | {"late_s": record.late_s}
            for record in self.records
        ]
        return pandas.DataFrame(rows)

    def run(self) -> Run:
        """The completed requests, in the form of the metrics."""
        done = self.of("completed")
        refused = len(self.of("refused"))
        return Run(
            duration_s=self.duration_s,
            token_ids=(),
            output_lens=tuple(record.num_output_tokens for record in done),
            num_input_tokens=sum(record.num_prompt_tokens for record in done),
            metrics=tuple(record.metrics for record in done),
            itl_s=tuple(gap for record in done for gap in record.itl_s),
            num_failed=refused + len(self.of("failed")) + len(self.of("timed_out")),
            num_refused=refused,
        )

    def report(
        self, slo: Slo | None = None, percentiles: Sequence[float] = (99,), detailed: bool = False
    ) -> dict[str, Any]:
        """The fields of `vllm bench serve`, and what it does not say: how late the client was, and
        the time to first token from when requests were sent. `detailed` adds a list by request."""
        by_status = Counter(record.status for record in self.records)
        result = serve_result(self.run(), slo, percentiles)
        result |= {
            "timed_out": by_status["timed_out"],
            "interrupted": by_status["interrupted"],
            "not_sent": self.num_requests - len(self.records),
            "complete": self.is_complete,
            "max_concurrent_requests": peak_concurrency(self.records),
        }
        sent = [r.ttft_from_send_s for r in self.of("completed") if r.ttft_from_send_s is not None]
        from_send = distribution(sent)
        late = distribution([record.late_s for record in self.records if record.sent_s is not None])
        lag = distribution(self.lags_s)
        result |= {
            "median_ttft_from_send_ms": from_send and from_send.p50 * 1e3,
            "p99_ttft_from_send_ms": from_send and from_send.p99 * 1e3,
            "client_late_p50_ms": late and late.p50 * 1e3,
            "client_late_p99_ms": late and late.p99 * 1e3,
            "client_late_max_ms": late and late.max * 1e3,
            "client_lag_p99_ms": lag and lag.p99 * 1e3,
            "client_cpu_s": self.client_cpu_s,
            "client_cpu_share": self.client_load,
            "warnings": self.warnings,
        }
        return result | (self._details() if detailed else {})

    def _details(self) -> dict[str, Any]:
        """Lists by request, in the names of `vllm bench serve --save-detailed`."""
        records = self.records
        return {
            "input_lens": [record.num_prompt_tokens for record in records],
            "output_lens": [record.num_output_tokens for record in records],
            "ttfts": [record.metrics.ttft_s for record in records],
            "itls": [record.itl_s for record in records],
            "start_times": [record.sent_s for record in records],
            "scheduled_times": [record.scheduled_s for record in records],
            "end_times": [record.ended_s for record in records],
            "statuses": [record.status for record in records],
            "errors": [record.error for record in records],
            "generated_texts": [record.text for record in records],
        }


def peak_concurrency(records: Sequence[RequestRecord]) -> int:
    """Most requests that were sent and had not ended."""
    changes = [(r.sent_s, 1) for r in records if r.sent_s is not None]
    changes += [(r.ended_s, -1) for r in records if r.sent_s is not None and r.ended_s is not None]
    now = most = 0
    for _, change in sorted(changes):  # at one time, ends come first
        now += change
        most = max(most, now)
    return most


LATE_S = 0.01
BUSY_SHARE = 0.8


def _client_warnings(result: PlayResult) -> list[str]:
    late = distribution([r.late_s for r in result.records if r.sent_s is not None])
    found = []
    if late is not None and late.p99 > LATE_S:
        found.append(
            f"The client sent its requests up to {late.max * 1e3:.3g} ms after they were due "
            f"(P99 {late.p99 * 1e3:.3g} ms): it is a part of the bottleneck. Lower the rate, or "
            "play from another machine."
        )
    lag = distribution(result.lags_s)
    if lag is not None and lag.p99 > LATE_S:
        found.append(
            f"The client took up to {lag.max * 1e3:.3g} ms to react (P99 {lag.p99 * 1e3:.3g} ms), "
            "so tokens may have arrived that much earlier than noted. Play from another machine, "
            "or when nothing else runs."
        )
    if result.client_load > BUSY_SHARE:
        found.append(
            f"The client kept its core busy for {result.client_load:.0%} of the time: the server "
            "may be able to do more. Play from several processes, or from another machine."
        )
    return found


def _answer_warnings(result: PlayResult) -> list[str]:
    found = []
    counts = {status: len(result.of(status)) for status in get_args(Status)}
    if not result.is_complete:
        unsent = result.num_requests - len(result.records)
        found.append(
            f"Incomplete: {counts['interrupted']} requests were still running and {unsent} had not "
            "been sent when the run was stopped."
        )
    for status, count in counts.items():
        if count and status in ("failed", "timed_out"):
            first = result.of(status)[0]
            found.append(f"{count} {status.replace('_', ' ')}, the first: {first.error}")
    if any(record.is_estimated for record in result.of("completed")):
        found.append(
            "The server tells no usage, so each event is counted as one token: output tokens and "
            "TPOT are estimates."
        )
    return found
