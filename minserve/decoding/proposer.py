"""The interface of a proposer: it drafts tokens that a request may generate next.

The engine verifies a draft in the same pass that computes the request's newest token, so proposals
change how many tokens a step gives, and never which (Leviathan et al., arXiv 2211.17192; Chen et
al., arXiv 2302.01318, with the draw of each position fixed).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from minserve.draft import Draft
from minserve.request import Request


class ProposerError(RuntimeError):
    """A proposer returned something that is no draft. The message names its class, the value and
    what was expected."""


class Proposer:
    """Drafts tokens. One proposer belongs to one engine, whose steps call it: it must not call the
    engine itself.

    State of a request that it keeps should be in a `WeakKeyDictionary`: nothing tells it that a
    request has ended. A request's known tokens never change, except that new ones are added.
    """

    proposes_trees: ClassVar[bool] = False
    """True if a draft may have branches."""
    needs_hidden: ClassVar[bool] = False
    """True: `observe` is called with the model's hidden states."""

    def propose(self, requests: Sequence[Request]) -> Sequence[Draft | None]:
        """A draft for each of these requests, in their order; None for a request without one.

        Called before each step with the requests that have only their newest token to compute. A
        draft that is too long for a request or for the step is cut; a tree has at most 62 tokens,
        which is what a tree mask holds.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method propose(requests)")

    def observe(self, request: Request, hidden: Tensor) -> None:
        """Receive the hidden states of a request's new tokens, if `needs_hidden`.

        `hidden`: `[num_new, hidden_size]`, on the model's device: the residual stream after the
        last layer, from which each of the request's last `num_new` tokens was drawn.
        """
