"""Agreement and acceptance are what speculative decoding, carried out, would count."""

from __future__ import annotations

import pytest
import torch

from minserve.zoo.evaluation.agreement import Agreement, compare, loops, rounds

VOCAB = 5
GAMMA = 3


def markov(seed: int, sharpness: float) -> torch.Tensor:
    """A model whose next-token logits depend on the last token only [vocab, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    return sharpness * torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)


def speculate(
    base: torch.Tensor, draft: torch.Tensor, length: int, generator: torch.Generator | None
) -> tuple[int, int]:
    """(proposed, accepted) of speculative decoding, done step by step as the papers write it."""
    tokens, proposed, accepted = [0], 0, 0

    def pick(p: torch.Tensor) -> int:
        if generator is None:
            return int(p.argmax())
        return int(torch.multinomial(p, 1, generator=generator))

    while len(tokens) - 1 + GAMMA <= length:
        last, proposals = tokens[-1], []
        for _ in range(GAMMA):
            proposals.append(pick(draft[(proposals or [last])[-1]].softmax(-1)))
        proposed += GAMMA
        for token in proposals:
            p, q = base[tokens[-1]].softmax(-1), draft[tokens[-1]].softmax(-1)
            if generator is None:
                passes = token == int(p.argmax())
            else:
                passes = float(torch.rand((), generator=generator)) < float(p[token] / q[token])
            if not passes:
                tokens.append(pick(p if generator is None else (p - q).clamp(min=0)))
                break
            accepted += 1
            tokens.append(token)
        else:
            tokens.append(pick(base[tokens[-1]].softmax(-1)))
    return proposed, accepted


def written(base: torch.Tensor, length: int, generator: torch.Generator | None) -> list[int]:
    tokens = [0]
    for _ in range(length):
        p = base[tokens[-1]].softmax(-1)
        tokens.append(
            int(p.argmax())
            if generator is None
            else int(torch.multinomial(p, 1, generator=generator))
        )
    return tokens


def test_greedy_rounds_are_those_of_speculation_carried_out() -> None:
    for seed in range(20):
        base, draft = markov(seed, 1.0), markov(seed, 1.0) + markov(seed + 100, 0.5)
        tokens = written(base, 30, None)
        before, after = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
        found = compare(base[before], draft[before], after, 0.0, GAMMA)
        assert (found.proposed, found.accepted) == speculate(base, draft, 30, None)


def test_sampled_acceptance_is_that_of_speculation_carried_out() -> None:
    base, draft = markov(1, 1.5), markov(1, 1.5) + markov(2, 0.8)
    generator = torch.Generator().manual_seed(0)
    read, done = Agreement(), [0, 0]
    for _ in range(60):
        tokens = written(base, 100, generator)
        before, after = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
        read += compare(base[before], draft[before], after, 1.0, GAMMA, generator)
        for index, count in enumerate(speculate(base, draft, 100, generator)):
            done[index] += count
    assert read.proposed > 4000
    # Two estimates of about 5,000 proposals each, whose standard error is about 0.012.
    assert read.acceptance == pytest.approx(done[1] / done[0], abs=0.05)
    assert 0.2 < read.acceptance < 0.9


def test_temperature_divides_logits_and_shared_mass_is_counted() -> None:
    base, draft = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    found = compare(base, draft, torch.tensor([0]), 2.0, 1)
    p = torch.tensor([1.0, 0.0]).softmax(-1)
    assert found.agreement == pytest.approx(2 * float(p[1]))


@pytest.mark.parametrize(
    ("accepts", "counts"),
    [
        ([True] * 4, (3, 3)),
        ([True] * 8, (6, 6)),  # three accepted and one of the base's own, twice
        ([False, True, True, True], (6, 3)),
        ([True, False, True, True, False], (6, 3)),
        ([True, True], (0, 0)),
    ],
)
def test_a_round_ends_at_its_first_failure(accepts: list[bool], counts: tuple[int, int]) -> None:
    assert rounds(accepts, GAMMA) == counts


def test_no_proposals_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma=0"):
        rounds([True], 0)


def test_loops_are_told_from_text() -> None:
    assert not loops(range(64))
    assert loops([1, 2, 3] * 10)
    assert not loops([7])
