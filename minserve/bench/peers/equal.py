"""Do two sides generate the same tokens? Comparing the speed of different
computations means nothing.

In float32 two correct implementations differ only if two logits are almost equal: a first
difference is a tie if the oracle's two largest logits are closer than `TIE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minserve.bench.workloads.workload import Workload

TIE = 1e-4


@dataclass(frozen=True)
class Difference:
    """Where one request's tokens first differ."""

    request: int
    position: int
    """Index among the generated tokens."""
    ours: int
    theirs: int
    gap: float | None
    """The oracle's gap between its two largest logits there; None without an oracle."""


@dataclass(frozen=True)
class TokenCheck:
    """The outcome of a comparison, request by request."""

    against: str
    dtype: str
    requests: int
    identical: int
    ties: tuple[Difference, ...]
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """True if only ties differ."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self) | {"equal": self.equal}

    def __str__(self) -> str:
        text = f"{self.identical} of {self.requests} requests token for token"
        if self.ties:
            text += f", {len(self.ties)} up to a tie"
        if self.differences:
            text += f", {len(self.differences)} DIFFERENT"
        return f"{text} ({self.dtype}, against {self.against})"


def compare_tokens(
    workload: Workload,
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    *,
    against: str,
    dtype: str,
    gap: Callable[[list[int]], float] | None = None,
) -> TokenCheck:
    """Compare the first difference of every request; `gap` returns an oracle's gap after
    the given tokens.

    Raises ValueError if the sides did not serve the same number of requests.
    """
    if not len(workload.items) == len(ours) == len(theirs):
        raise ValueError(
            f"{len(workload.items)} requests, but {len(ours)} and {len(theirs)} outputs to compare"
        )
    ties: list[Difference] = []
    differences: list[Difference] = []
    identical = 0
    for index, (item, a, b) in enumerate(zip(workload.items, ours, theirs, strict=True)):
        if list(a) == list(b):
            identical += 1
            continue
        pairs = zip(a, b, strict=False)
        position = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
        if position == min(len(a), len(b)):
            differences.append(Difference(index, position, -1, -1, None))
            continue
        value = gap([*item.prompt_token_ids, *b[:position]]) if gap is not None else None
        found = Difference(index, position, a[position], b[position], value)
        (ties if value is not None and value < TIE else differences).append(found)
    return TokenCheck(
        against, dtype, len(workload.items), identical, tuple(ties), tuple(differences)
    )
