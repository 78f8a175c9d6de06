"""The rows of a step, gathered request by request: the only part of a batch built in a Python loop.

A request's rows are the next of its known tokens and, after the last one, the tokens of its draft.
The logits of the last known row and of every proposed row are drawn from: each draw is named by
its request, its position, and the tokens before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from minserve.batch import PLAIN
from minserve.draft import Draft
from minserve.request import Request


class Rows:
    """The rows of one batch."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.starts: list[int] = []
        self.sampled: list[Request] = []
        """Requests whose next token is drawn, each once."""
        self.first_rows: list[int] = []
        """Their first sample rows; filled in by `add`."""
        self.drawn_for: list[Request] = self.sampled
        """By sample row: its request. A list of its own once a request has a draft."""
        self.sample_rows: list[int] = []
        self.proposed: dict[int, tuple[int, ...]] = {}
        """By sample row of a proposed token: the draft's tokens up to this one."""
        self.trees: list[tuple[int, Draft]] = []
        """(row of the token before it, draft) of each draft that is no chain."""
        self.pending: list[tuple[int, int]] = []
        self.prompt_rows: list[int] = []
        self.prompt_targets: list[int] = []
        self.prompt_owners: list[Request] = []
        self.prompt_counts: list[int] = []

    def add_decode(self, requests: list[Request]) -> None:
        """Add one row per request: the common step, without the work that only prompts need."""
        self.starts = [r.num_computed_tokens + r.num_inflight_tokens for r in requests]
        for row, (request, at) in enumerate(zip(requests, self.starts, strict=True)):
            known = request.token_ids
            self.tokens.append(known[at] if at < len(known) else self._pending(request, row))
        ahead = [r.num_coming_tokens - at for r, at in zip(requests, self.starts, strict=True)]
        self.sample_rows = [row for row, missing in enumerate(ahead) if missing == 1]
        self.sampled = self.drawn_for = [requests[row] for row in self.sample_rows]

    def add(self, request: Request, count: int, draft: Draft | None = None) -> None:
        """Add the next `count` tokens of a request; the last ones are those of `draft`."""
        start = request.num_computed_tokens + request.num_inflight_tokens
        known, stop = request.token_ids, start + count - (0 if draft is None else len(draft))
        if request.params.prompt_logprobs is not None:
            self._add_prompt_rows(request, start, stop)
        self.starts.append(start)
        self.tokens.extend(known[start:stop])
        if stop > len(known):
            self.tokens.append(self._pending(request, len(self.tokens)))
        if stop == request.num_coming_tokens:
            self.first_rows.append(len(self.sample_rows))
            self.sampled.append(request)
            if self.drawn_for is not self.sampled:
                self.drawn_for.append(request)
            self.sample_rows.append(len(self.tokens) - 1)
        if draft is not None:
            self._add_draft(request, draft)

    def _add_draft(self, request: Request, draft: Draft) -> None:
        """Add a row for each proposed token, from which the token after it is drawn."""
        if self.drawn_for is self.sampled:
            self.drawn_for = list(self.sampled)
        if not draft.is_chain:
            self.trees.append((len(self.tokens) - 1, draft))
        for index, token in enumerate(draft.token_ids):
            branch = tuple(draft.token_ids[each] for each in draft.branch(index))
            self.proposed[len(self.sample_rows)] = branch
            self.sample_rows.append(len(self.tokens))
            self.tokens.append(token)
            self.drawn_for.append(request)

    def drawn_positions(self) -> list[int]:
        """By sample row: the position of the token that is drawn, in prompt plus output."""
        positions = [request.num_coming_tokens for request in self.drawn_for]
        for row, branch in self.proposed.items():
            positions[row] += len(branch)
        return positions

    def tree_positions(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions of all rows: their places `[num_tokens]`, but in a tree by depth."""
        positions = places.copy()
        for row, draft in self.trees:
            positions[row + 1 : row + 1 + len(draft)] = places[row] + np.array(draft.depths)
        return positions

    def tree_masks(self) -> torch.Tensor:
        """`ForwardBatch.tree`. A proposed token sees its own branch and the request's newest known
        token, which is the request's first row: only decoding requests have a draft."""
        masks = [PLAIN] * len(self.tokens)
        for row, draft in self.trees:
            masks[row] = 1
            for index in range(len(draft)):
                own = 2 << index
                masks[row + 1 + index] = masks[row + 1 + draft.parent(index)] | own
            masks[row] = PLAIN
        return torch.tensor(masks, dtype=torch.int64)

    def _pending(self, request: Request, row: int) -> int:
        """Record that the device fills in the token of `row`; returns the placeholder until
        then."""
        self.pending.append((row, request.pending_row))
        return 0

    def _add_prompt_rows(self, request: Request, start: int, stop: int) -> None:
        wanted = request.params.prompt_logprobs or 0
        first_row = len(self.tokens) - start
        # Start at the first position that has no result yet: a resumed request gets no result
        # twice.
        for position in range(
            max(start, len(request.prompt_logprobs) - 1), min(stop, request.num_prompt_tokens - 1)
        ):
            self.prompt_rows.append(first_row + position)
            self.prompt_targets.append(request.token_ids[position + 1])
            self.prompt_owners.append(request)
            self.prompt_counts.append(wanted)
