"""What was proposed in a step, and what the model accepted of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, slots=True)
class Speculation:
    """Counts of speculative decoding, in one step or in a run."""

    num_drafts: int = field(default=0, metadata=summed())
    """Drafts verified: one per request and step that had one."""
    proposed_tokens: tuple[int, ...] = field(default=(), metadata=summed())
    """Proposed tokens by depth in their draft: entry 0 counts those that directly continue their
    request."""
    accepted_tokens: tuple[int, ...] = field(default=(), metadata=summed())
    """Of these, by depth, tokens that became part of an output."""

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens per proposed one; None if none was proposed."""
        proposed = sum(self.proposed_tokens)
        return sum(self.accepted_tokens) / proposed if proposed else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Accepted tokens per verified draft, and the model's own after them; None without a draft.
        (A draft with which its request ends may give one token less.)"""
        if not self.num_drafts:
            return None
        return 1 + sum(self.accepted_tokens) / self.num_drafts


NO_SPECULATION = Speculation()
"""The counts of a step that verified no draft."""
