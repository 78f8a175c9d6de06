"""The workload of a benchmark: prompts as token ids, and how many tokens each request generates.

Knows nothing about engines, peers or time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

# The race's prompts stay below this id for every vocabulary, so that a larger one changes nothing;
# 0 and 1 are omitted because checkpoints use them for special tokens.
_RACE_IDS = 4000


@dataclass(frozen=True)
class WorkItem:
    """One request: a prompt, and the exact number of tokens to generate, greedily."""

    prompt_token_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests that all arrive at once, and their origin."""

    name: str
    items: tuple[WorkItem, ...]
    seed: int

    @property
    def num_input_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(item.prompt_token_ids) for item in self.items)

    @property
    def num_output_tokens(self) -> int:
        """Tokens all requests generate."""
        return sum(item.max_tokens for item in self.items)

    @property
    def longest(self) -> int:
        """Most tokens of one request, prompt and output together."""
        return max(len(item.prompt_token_ids) + item.max_tokens for item in self.items)

    def first(self, count: int) -> Workload:
        """The same workload with only its first requests: for warm-ups and checks."""
        return Workload(f"{self.name}, first {count}", self.items[:count], self.seed)

    def to_dict(self) -> dict[str, Any]:
        """For reports: the workload without its token ids."""
        return {
            "name": self.name,
            "seed": self.seed,
            "num_requests": len(self.items),
            "total_input_tokens": self.num_input_tokens,
            "total_output_tokens": self.num_output_tokens,
            "lengths": "fixed",
            "sampling": "greedy, end-of-sequence ignored",
        }


def race_workload(vocab_size: int, num_requests: int = 64, seed: int = 0) -> Workload:
    """Prompts of 32 to 256 random tokens and outputs of 32 to 128, uniformly drawn.

    Raises ValueError for a vocabulary or a number of requests too small to draw from.
    """
    if vocab_size < 4 or num_requests < 1:
        raise ValueError(
            f"race_workload(vocab_size={vocab_size}, num_requests={num_requests}): expected a "
            "vocabulary of at least 4 tokens and at least 1 request"
        )
    draw, last = random.Random(seed), min(_RACE_IDS, vocab_size) - 1
    items = []
    for _ in range(num_requests):
        # The order of the draws determines the workload: prompt length, prompt, output length.
        prompt = tuple(draw.randint(2, last) for _ in range(draw.randint(32, 256)))
        items.append(WorkItem(prompt, draw.randint(32, 128)))
    name = f"race: {num_requests} requests, 32-256 tokens in, 32-128 out"
    return Workload(name, tuple(items), seed)


def single_stream(vocab_size: int, input_len: int, output_len: int, seed: int = 0) -> WorkItem:
    """One request of given lengths; its prompt is drawn as in `race_workload`. Raises
    ValueError below 1."""
    if input_len < 1 or output_len < 2:
        raise ValueError(
            f"single_stream(input_len={input_len}, output_len={output_len}): expected a prompt of "
            "at least 1 token and an output of at least 2, so that there is a time between tokens"
        )
    draw, last = random.Random(seed), min(_RACE_IDS, vocab_size) - 1
    return WorkItem(tuple(draw.randint(2, last) for _ in range(input_len)), output_len)
