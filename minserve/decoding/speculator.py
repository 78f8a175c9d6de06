"""Asks a proposer for drafts before each step, and checks them before they are used.

A proposer can be the caller's own code. Whatever it returns, only the request that the answer is
about can end because of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from minserve.decoding.proposer import Proposer, ProposerError
from minserve.draft import Draft
from minserve.inputs.checks import shorten
from minserve.kernels.tree import MOST_ROWS
from minserve.request import Request

MOST_TREE_TOKENS = MOST_ROWS - 1
"""Most tokens of a tree: with the request's newest token they are the rows that a mask holds."""

NOTHING: Mapping[Request, Draft] = {}


class Speculator:
    """The proposer of one engine, or none."""

    def __init__(self, proposer: Proposer | None, vocab_size: int) -> None:
        self._proposer = proposer
        self._vocab_size = vocab_size

    @property
    def is_on(self) -> bool:
        """True if there is a proposer."""
        return self._proposer is not None

    @property
    def needs_hidden(self) -> bool:
        """True if the proposer observes hidden states."""
        return self._proposer is not None and self._proposer.needs_hidden

    def propose(
        self, running: Sequence[Request], fail: Callable[[Request, Exception], None]
    ) -> Mapping[Request, Draft]:
        """Drafts for the requests that are decoding, cut to what each may still generate.

        `fail` is called for a request whose draft cannot be used. If the proposer raises, it is
        asked for each request alone, so that only those end for which it raises again.
        """
        if self._proposer is None:
            return NOTHING
        asked = [one for one in running if one.is_decoding and _room(one) > 0]
        found: dict[Request, Draft] = {}
        try:
            answers = self._ask(asked) if asked else ()
        except Exception:
            answers = [self._ask_alone(request, fail) for request in asked]
        for request, answer in zip(asked, answers, strict=True):
            if answer is None:
                continue
            try:
                draft = self._checked(answer).within(
                    # The step itself adds one token after the last accepted one.
                    max_depth=_room(request),
                    max_tokens=_room(request) + (not answer.is_chain),
                )
            except Exception as error:
                fail(request, error)
                continue
            if len(draft):
                found[request] = draft
        return found

    def observe(self, request: Request, hidden: Tensor) -> None:
        """See `Proposer.observe`."""
        assert self._proposer is not None
        self._proposer.observe(request, hidden)

    def _ask(self, requests: Sequence[Request]) -> Sequence[Draft | None]:
        assert self._proposer is not None
        answers = self._proposer.propose(tuple(requests))
        if not isinstance(answers, Sequence) or len(answers) != len(requests):
            raise self._error(answers, f"a list of {len(requests)} drafts, one for each request")
        return answers

    def _ask_alone(
        self, request: Request, fail: Callable[[Request, Exception], None]
    ) -> Draft | None:
        try:
            return self._ask([request])[0]
        except Exception as error:
            fail(request, error)
            return None

    def _checked(self, draft: Draft) -> Draft:
        """The draft, if it can be verified. Raises ProposerError."""
        if not isinstance(draft, Draft):
            raise self._error(draft, "Draft(token_ids) or None")
        for token in draft.token_ids:
            if not 0 <= token < self._vocab_size:
                raise self._error(
                    token, f"token ids from 0 to {self._vocab_size - 1}, which the model has"
                )
        if not draft.is_chain:
            assert self._proposer is not None
            if not self._proposer.proposes_trees:
                raise self._error(draft, "a chain, because its proposes_trees is False")
            if len(draft) > MOST_TREE_TOKENS:
                raise self._error(
                    draft,
                    f"a tree of at most {MOST_TREE_TOKENS} tokens, which is what a tree mask holds",
                )
        return draft

    def _error(self, value: object, expected: str) -> ProposerError:
        name = type(self._proposer).__name__
        return ProposerError(
            f"{name}.propose answered {shorten(value)} ({type(value).__name__}): "
            f"expected {expected}"
        )


def _room(request: Request) -> int:
    """Most proposed tokens that may be accepted: the step draws one more token after them."""
    return request.max_len - len(request.token_ids) - 1
