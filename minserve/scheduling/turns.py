"""What a step computes first: `scheduling.prefill` as the order in which requests take their turns.

Each turn takes from what the turns before it left of the token budget. There is still one
subtraction for everybody; a turn only says who does it now.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from minserve.request import Request


class Turn(Enum):
    """Whose turn it is."""

    RUNNING = "running"
    """Every request that holds a place."""
    READING = "reading"
    """Those with more than their newest token to compute: prompts, and what is recomputed."""
    WRITING = "writing"
    """Those with exactly their newest token to compute."""
    WAITING = "waiting"
    """The queue, as far as there is room."""
    ALONE = "alone"
    """What follows is left to the next step if anything is planned by now."""


TURNS: dict[str, tuple[Turn, ...]] = {
    "mixed": (Turn.RUNNING, Turn.WAITING),
    "decode_first": (Turn.WRITING, Turn.READING, Turn.WAITING),
    "prefill_first": (Turn.READING, Turn.WAITING, Turn.ALONE, Turn.WRITING),
}
"""`scheduling.prefill` -> its turns. decode_first: Sarathi-Serve (arXiv 2403.02310) and DeepSpeed-
FastGen (arXiv 2401.08671), whose chunk is `max_num_prefill_tokens`; prefill_first: vLLM before its
chunks, with the decodes stalled that Sarathi-Serve's figure 1 shows."""


def is_writing(request: Request) -> bool:
    """True when only the newest generated token is left to compute."""
    has_written = request.num_output_tokens > 0 or request.num_pending_tokens > 0
    return has_written and request.num_uncomputed_tokens == 1


@dataclass(slots=True)
class Budget:
    """Tokens that a step may still compute."""

    tokens: int
    prefill_tokens: int | None = None
    """Of them, tokens that are not a request's newest one; None: all."""

    def for_request(self, request: Request) -> int:
        """Most tokens this request may take."""
        if self.prefill_tokens is None or is_writing(request):
            return self.tokens
        return min(self.tokens, self.prefill_tokens)

    def take(self, request: Request, count: int) -> None:
        """Count what it took."""
        self.tokens -= count
        if self.prefill_tokens is not None and not is_writing(request):
            self.prefill_tokens -= count
