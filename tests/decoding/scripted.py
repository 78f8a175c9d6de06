"""Proposers that know the right answer, and draft as much of it as a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minserve.decoding import Proposer
from minserve.draft import Draft
from minserve.request import Request

Answers = Mapping[tuple[str, int], Sequence[int]]
"""(request, sample) -> all tokens that it will generate."""


class Scripted(Proposer):
    """Drafts chains: at each place of the answer the right token, or one that is not right."""

    def __init__(
        self,
        answers: Answers,
        vocab_size: int,
        length: int = 4,
        right: Callable[[int], bool] = lambda place: True,
    ) -> None:
        """`right(place)`: is the token at this place of the answer proposed as it is?"""
        self.answers, self.vocab_size, self.length, self.right = answers, vocab_size, length, right
        self.given: list[tuple[Request, int, Draft]] = []
        """Each draft, with its request and how many tokens that had generated."""

    def propose(self, requests: Sequence[Request]) -> list[Draft | None]:
        return [self.draft(request) for request in requests]

    def draft(self, request: Request) -> Draft | None:
        coming = self.coming(request)
        if not coming:
            return None
        place = request.num_output_tokens
        tokens = [self.token(token, place + index) for index, token in enumerate(coming)]
        return self.give(request, Draft(tuple(tokens)))

    def coming(self, request: Request) -> Sequence[int]:
        answer = self.answers[request.request_id, request.sample_index]
        place = request.num_output_tokens
        return answer[place : place + self.length]

    def token(self, token: int, place: int) -> int:
        return token if self.right(place) else (token + 1) % self.vocab_size

    def give(self, request: Request, draft: Draft) -> Draft:
        self.given.append((request, request.num_output_tokens, draft))
        return draft


class ScriptedTree(Scripted):
    """Drafts a tree: beside each right token a wrong sibling with a child of its own, the wrong one
    first, so that the accepted tokens lie apart."""

    proposes_trees = True

    def draft(self, request: Request) -> Draft | None:
        coming = self.coming(request)
        if not coming:
            return None
        tokens: list[int] = []
        parents: list[int] = []
        last, place = -1, request.num_output_tokens
        for index, token in enumerate(coming):
            wrong = (token + 3) % self.vocab_size
            tokens += [wrong, self.token(token, place + index), (wrong + 1) % self.vocab_size]
            first = len(parents)
            parents += [last, last, first]
            last = first + 1
        return self.give(request, Draft(tuple(tokens), tuple(parents)))


def sometimes(place: int) -> bool:
    """Right at two places of three."""
    return place % 3 != 2


KINDS: dict[str, Callable[[Answers, int], Scripted]] = {
    "right": lambda answers, vocab: Scripted(answers, vocab),
    "half": lambda answers, vocab: Scripted(answers, vocab, 5, sometimes),
    "wrong": lambda answers, vocab: Scripted(answers, vocab, 3, lambda place: False),
    "tree": lambda answers, vocab: ScriptedTree(answers, vocab, 4),
    "half tree": lambda answers, vocab: ScriptedTree(answers, vocab, 5, sometimes),
}


def confirmed(draft: Draft, answer: Sequence[int]) -> int:
    """How many tokens of the draft the answer confirms: a walk over all its branches, written
    without `accepted`."""
    branches = [
        [draft.token_ids[each] for each in draft.branch(index)] for index in range(len(draft))
    ]
    return max(
        (len(branch) for branch in branches if list(answer[: len(branch)]) == branch), default=0
    )
