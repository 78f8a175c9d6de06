"""How well a draft predicts its base: agreement, and what speculation would accept.

Both are measured along text that the base itself writes after prompts it was never trained on,
because that is where a draft is used. Knows probabilities and rounds of proposals; knows nothing
about the models.

Everything is computed from one teacher-forced pass of both models over the finished text. For
greedy decoding that is exact because a round ends at the first token the base would not have
written. For sampling it is exact because a token x that speculative sampling emits was an accepted
proposal with probability min(1, q(x) / p(x)), where p is the base and q the draft: accepted
proposals have density min(p, q), and emitted tokens have density p.

Leviathan et al., 2023: arxiv.org/abs/2211.17192
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.zoo.corpus.own_text import LOOP_SHARE, repeated_share


@dataclass(frozen=True)
class Agreement:
    """Counts along some texts. Counts can be added."""

    tokens: int = 0
    agreed: float = 0.0
    """Tokens that are the most likely of both models; when sampling, the sum of the shared
    probability of the two distributions."""
    proposed: int = 0
    accepted: int = 0

    @property
    def agreement(self) -> float:
        """Mean over tokens: P(the same choice), or mean of sum_i min(p_i, q_i)."""
        return self.agreed / self.tokens

    @property
    def acceptance(self) -> float:
        """Accepted over proposed."""
        return self.accepted / self.proposed

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.tokens + other.tokens,
            self.agreed + other.agreed,
            self.proposed + other.proposed,
            self.accepted + other.accepted,
        )


def loops(tokens: Sequence[int]) -> bool:
    """True if more than 30 % of a continuation's runs of four tokens are repetitions."""
    return repeated_share(tokens) > LOOP_SHARE


def rounds(accepts: Sequence[bool], gamma: int) -> tuple[int, int]:
    """(proposed, accepted) of speculation whose proposal for token i is accepted if `accepts[i]`.

    A round proposes `gamma` tokens; the accepted ones are those before the first that fails, then
    the base adds one token. Rounds that would reach past the end are omitted.
    """
    if gamma < 1:
        raise ValueError(f"A round proposes at least one token; got gamma={gamma}.")
    proposed = accepted = at = 0
    while at + gamma <= len(accepts):
        passed = 0
        while passed < gamma and accepts[at + passed]:
            passed += 1
        proposed, accepted = proposed + gamma, accepted + passed
        at += passed + 1
    return proposed, accepted


def compare(
    base_logits: Tensor,
    draft_logits: Tensor,
    tokens: Tensor,
    temperature: float,
    gamma: int,
    generator: torch.Generator | None = None,
) -> Agreement:
    """Agreement along one continuation that the base wrote at `temperature`.

    Logits [n, vocab] are those that predict `tokens` [n]. At temperature 0 a proposal is accepted
    if it is the base's token; above 0, by the standard rule, with random numbers from `generator`.
    """
    if temperature == 0.0:
        same = draft_logits.argmax(-1) == tokens
        agreed = float((draft_logits.argmax(-1) == base_logits.argmax(-1)).sum())
    else:
        p = torch.softmax(base_logits.double() / temperature, dim=-1)
        q = torch.softmax(draft_logits.double() / temperature, dim=-1)
        agreed = float(torch.minimum(p, q).sum())
        chance = q.gather(1, tokens[:, None]) / p.gather(1, tokens[:, None])
        draws = torch.rand(len(tokens), dtype=torch.float64, generator=generator)
        same = draws < chance[:, 0]
    proposed, accepted = rounds(same.tolist(), gamma)
    return Agreement(len(tokens), agreed, proposed, accepted)
