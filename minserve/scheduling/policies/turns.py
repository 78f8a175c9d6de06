"""What a step computes first: `scheduling.prefill` as the order in which requests take their turns.

Each turn takes tokens from what earlier turns left of the budget. All requests compute their
missing tokens in the same way; a turn only says which of them do it now.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from minserve.request import Request


class Turn(Enum):
    """Which requests take their turn."""

    RUNNING = "running"
    """Every request that holds a place."""
    PREFILL = "prefill"
    """Requests with more than their newest token to compute: prompts, and tokens to recompute."""
    DECODE = "decode"
    """Requests with only their newest token to compute (`Request.is_decoding`)."""
    WAITING = "waiting"
    """The queue, as far as there is room."""
    RANKED = "ranked"
    """Running requests and the queue in one line, by rank."""
    CATCHING_UP = "catching up"
    """PREFILL and WAITING in one line, by rank."""
    LEADING = "leading"
    """The requests of DECODE that rank before every prompt."""
    ALONE = "alone"
    """Stop here if a prompt is already scheduled."""


TURNS: dict[str, tuple[Turn, ...]] = {
    "mixed": (Turn.RUNNING, Turn.WAITING),
    "decode_first": (Turn.DECODE, Turn.PREFILL, Turn.WAITING),
    "prefill_first": (Turn.PREFILL, Turn.WAITING, Turn.ALONE, Turn.DECODE),
}
"""`scheduling.prefill` -> its turns.

decode_first: Sarathi-Serve (arXiv 2403.02310) and DeepSpeed-FastGen (arXiv 2401.08671); its chunk
is `max_num_prefill_tokens`. prefill_first: vLLM before chunked prefill; it stalls decoding
requests, as in figure 1 of Sarathi-Serve.
"""

RANKED_TURNS: dict[str, tuple[Turn, ...]] = {
    "mixed": (Turn.RANKED,),
    "decode_first": (Turn.DECODE, Turn.CATCHING_UP),
    "prefill_first": (Turn.LEADING, Turn.CATCHING_UP, Turn.ALONE, Turn.DECODE),
}
"""The same for a preemptive order.

A running prompt does not take the budget before a waiting request of better rank does: otherwise an
urgent request would wait for the whole prompt in front of it (priority inversion). For the same
reason, prompts go before decoding requests only if no decoding request ranks before them.
"""


@dataclass(slots=True)
class Budget:
    """Tokens that a step may still compute."""

    tokens: int
    prefill_tokens: int | None = None
    """Of these, tokens that are not a request's newest one; None: all."""
    rows: int = 0
    """Of these, tokens reserved for decoding requests. At least one token stays available to other
    requests, so that a request of better rank always makes progress."""

    def for_request(self, request: Request) -> int:
        """Most tokens that this request may take."""
        if (self.prefill_tokens is None and not self.rows) or request.is_decoding:
            return self.tokens
        most = self.tokens
        if self.rows:
            most = min(most, max(1, most - self.rows))
        return most if self.prefill_tokens is None else min(most, self.prefill_tokens)

    def take(self, request: Request, count: int) -> None:
        """Subtract the tokens that the request took."""
        self.tokens -= count
        if self.prefill_tokens is not None and not request.is_decoding:
            self.prefill_tokens -= count
