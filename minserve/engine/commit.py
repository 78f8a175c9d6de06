"""After a step: gives its results to the requests it computed.

Three passes over the step's rows: `_advance` counts computed tokens, `_score` hands out the log
probabilities of prompts, and `_draw` hands out drawn tokens. Where a draft was verified, `_draw`
also commits the accepted tokens, one by one, as single steps would. `_details` records what was
done for each request if the trace keeps that. A row that fails ends its own request; the step
continues for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config import ResolvedConfig
from minserve.decoding import Speculator
from minserve.draft import Draft, accepted
from minserve.engine.flight import CommitCounts, Flight
from minserve.engine.recovery import Recovery
from minserve.engine.requests import LiveRequests
from minserve.execution.runner import StepResult
from minserve.memory import KVManager
from minserve.request import Request, TokenLogprobs
from minserve.trace import RequestStep


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens `start` to `start + count` of a request, computed by the step."""

    request: Request
    start: int
    count: int
    num_proposed: int
    """Of `count`, tokens of a draft."""
    num_known: int
    """Prompt and output tokens when the step began to be committed."""
    num_accepted_before: int
    num_recomputed: int
    blocks: tuple[int, ...]


class Committer:
    """Commits the steps of one engine."""

    def __init__(
        self,
        config: ResolvedConfig,
        memory: KVManager,
        requests: LiveRequests,
        recovery: Recovery,
        speculator: Speculator,
    ) -> None:
        self._memory = memory
        self._requests = requests
        self._recovery = recovery
        self._speculator = speculator
        self._keep_cache = config.config.memory.kv_cache
        self._detailed = config.config.trace.per_request
        self._keeps_blocks = self._detailed and config.config.trace.pages
        self._eos = frozenset(config.model.eos_token_ids)

    def commit(self, flight: Flight, result: StepResult, now: float) -> CommitCounts:
        """Give the results of a step to its requests; `now` is the time at which the results
        arrived."""
        counts = CommitCounts(now)
        spans = self._advance(flight, counts)
        counts.num_prefill = flight.num_tokens - counts.num_decode - counts.num_discarded
        self._score(flight, result)
        self._draw(flight, result, counts)
        if self._detailed:
            counts.details = _details(spans)
        return counts

    def _advance(self, flight: Flight, counts: CommitCounts) -> list[_Span]:
        """Count the step's known tokens as computed, and commit their pages."""
        spans: list[_Span] = []
        drafts, memory = flight.plan.drafts, self._memory
        keeps_cache, detailed = self._keep_cache, self._detailed
        for request, count in zip(flight.plan.requests, flight.plan.num_tokens, strict=True):
            if request.finish_reason is not None:
                counts.num_discarded += count
                continue
            request.num_inflight_tokens -= count
            proposed = len(drafts.get(request, ())) if drafts else 0
            known = count - proposed
            start = request.num_computed_tokens
            stop = start + known
            if known == 1 and stop == len(request.token_ids) > len(request.prompt_token_ids):
                counts.num_decode += count
            recomputed, reached = 0, request.num_ever_computed
            if start < reached:
                recomputed = min(stop, reached) - start
                counts.num_recomputed += recomputed
            if detailed:
                blocks = memory.blocks_of(request) if self._keeps_blocks else ()
                known_before, accepted_before = len(request.token_ids), request.num_accepted_tokens
                spans.append(
                    _Span(
                        request, start, count, proposed, known_before, accepted_before,
                        recomputed, blocks,
                    )
                )  # fmt: skip
            if stop > reached:
                request.num_ever_computed = stop
            try:
                if keeps_cache:
                    memory.commit(request, known, request.num_inflight_tokens + proposed)
                else:
                    memory.forget(request)
            except BaseException as error:
                self._recovery.fail_row(request, error)
        return spans

    def _score(self, flight: Flight, result: StepResult) -> None:
        """Give the log probabilities of prompt tokens to their requests."""
        for request, entry in zip(flight.built.prompt_owners, result.prompt_logprobs, strict=True):
            if not request.finished:
                request.prompt_logprobs.append(_limit(entry, request.params.prompt_logprobs or 0))

    def _draw(self, flight: Flight, result: StepResult, counts: CommitCounts) -> None:
        """Append drawn tokens, and finish the requests that reach their end with them."""
        drafts, hidden, now = flight.plan.drafts, result.hidden, counts.collected_s
        token_ids, errors, logprobs = result.token_ids, result.errors, result.logprobs
        plain = not drafts and hidden is None
        for row, request in flight.built.draws():
            if request.finish_reason is not None:
                continue
            request.num_pending_tokens -= 1
            num_before = counts.num_sampled
            try:
                if plain:  # the common step, without the calls that only drafts need
                    if errors and row in errors:
                        raise errors[row]
                    token = token_ids[row]
                    self._append(request, token, logprobs.get(row) if logprobs else None, now)
                    counts.num_sampled += token >= 0
                else:
                    self._take(request, drafts.get(request), row, result, counts)
            except BaseException as error:
                self._recovery.fail_row(request, error)
            if counts.num_sampled > num_before:
                counts.deliver(request)
            if request.finish_reason is not None:
                counts.num_finished += 1

    def _take(
        self,
        request: Request,
        draft: Draft | None,
        row: int,
        result: StepResult,
        counts: CommitCounts,
    ) -> None:
        """Append what was drawn for a request, and show the proposer the hidden states."""
        if draft is None:
            rows = [row]
            self._take_row(request, row, result, counts)
        else:
            rows = self._verify(request, draft, row, result, counts)
        if result.hidden is not None:
            self._speculator.observe(request, result.hidden[rows])

    def _take_row(
        self, request: Request, row: int, result: StepResult, counts: CommitCounts
    ) -> None:
        """Append the token drawn from one row. Raises the error of the row, if it failed."""
        if result.errors and row in result.errors:
            raise result.errors[row]
        token = result.token_ids[row]
        self._append(request, token, result.logprobs.get(row), counts.collected_s)
        counts.num_sampled += token >= 0

    def _verify(
        self, request: Request, draft: Draft, row: int, result: StepResult, counts: CommitCounts
    ) -> list[int]:
        """Append the token drawn after the newest one, and as many more as the model confirms of
        the draft; returns the sample rows they were drawn from. Each is committed before the next
        is appended, so that a request that ends among them leaves what single steps would have
        left."""
        kept = accepted(draft, result.token_ids[row : row + 1 + len(draft)])
        if kept != list(range(len(kept))):
            self._memory.compact(request, kept)
        drafts = counts.add_draft(request, draft)
        rows: list[int] = []
        for number, index in enumerate((-1, *kept)):
            if number:
                self._memory.commit(request, 1, len(kept) - number)
                request.num_ever_computed = max(
                    request.num_ever_computed, request.num_computed_tokens
                )
            # The token drawn last is the model's own; those before it had been proposed. Counted
            # before it is appended, because the request may end with it and report its counts.
            if number < len(kept):
                drafts.add_accepted(request, number)
            rows.append(row + 1 + index)
            self._take_row(request, rows[-1], result, counts)
            if request.finish_reason is not None:
                return rows
        self._memory.commit(request, 0)  # returns the pages of rejected tokens
        return rows

    def note_cost(self, flight: Flight, result: StepResult, counts: CommitCounts) -> None:
        """Record what prompt tokens cost to compute, for the choice between loading and
        recomputing."""
        if counts.num_prefill:
            # A compilation is paid once and says nothing about the cost of a token.
            forward_s = result.forward_s - result.compile_s
            spent_s = forward_s * counts.num_prefill / flight.num_tokens
            self._memory.costs.computed(counts.num_prefill, spent_s)

    def _append(
        self, request: Request, token: int, logprobs: TokenLogprobs | None, now: float
    ) -> None:
        """Append one drawn token; -1 means that none could be drawn from the logits."""
        requests = self._requests
        requests.news[request] = None
        if token < 0:
            request.error = _why_invalid(request)
            requests.finish(request, "error")
            return
        if request.first_token_s is None:
            request.first_token_s = now
        request.token_ids.append(token)
        if logprobs is not None:
            request.logprobs.append(_limit(logprobs, request.params.logprobs or 0))
        params, num_tokens = request.params, len(request.token_ids)
        stream = requests.texts.get(request) if requests.texts else None
        may_end = num_tokens - len(request.prompt_token_ids) >= params.min_tokens
        is_eos = token in self._eos and not params.ignore_eos
        ends_by_id = may_end and (is_eos or token in params.stop_token_ids)
        if stream is not None and (not ends_by_id or params.include_stop_str_in_output):
            stream.push((token,))
        if ends_by_id:
            requests.finish(request, "stop", None if is_eos else token, now=now)
        elif may_end and stream is not None and stream.stopped_by is not None:
            requests.finish(request, "stop", stream.stopped_by, now=now)
        elif num_tokens >= request.max_len:
            requests.finish(request, "length", now=now)


def _details(spans: list[_Span]) -> list[RequestStep]:
    """One record per request of what the step did for it, its drawn token included."""
    return [
        RequestStep(
            request_id=span.request.request_id,
            sample_index=span.request.sample_index,
            start=span.start,
            num_tokens=span.count,
            num_recomputed=span.num_recomputed,
            new_token_ids=tuple(span.request.token_ids[span.num_known :]),
            num_proposed=span.num_proposed,
            num_accepted=span.request.num_accepted_tokens - span.num_accepted_before,
            blocks=span.blocks,
        )
        for span in spans
    ]


def _why_invalid(request: Request) -> str:
    """One sentence that says why there was no token to draw."""
    where = f"request {request.request_id}: at position {request.num_tokens}"
    params = request.params
    if request.masks or params.min_tokens or float("-inf") in params.logit_bias.values():
        return (
            f"{where} no token was left to draw: structured_outputs, allowed_token_ids, bad_words, "
            "logit_bias and min_tokens together ban every one, or the model gave NaN"
        )
    return (
        f"{where} the model's logits are not numbers; a larger number format "
        "(EngineConfig.dtype) may help"
    )


def _limit(entry: TokenLogprobs, count: int) -> TokenLogprobs:
    """Cut the alternatives to the number this request asked for: the batch computes the largest
    number that any of its requests asked for."""
    if len(entry.top) <= count:
        return entry
    return TokenLogprobs(entry.token_id, entry.logprob, entry.rank, entry.top[:count])
