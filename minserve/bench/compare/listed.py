"""Traffic as a list of lengths: how long each request is, and whose prompt it begins like.

A list says what a scheduler and a page pool can see of requests. The tokens themselves are drawn
again: prompts share exactly the prefixes that the list gives them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from minserve.bench.compare.workload import Row
from minserve.bench.workloads.traffic import TimedRequest, Traffic, fixed_length

Tokens = tuple[int, ...]


def rows_of(traffic: Traffic) -> tuple[Row, ...]:
    """The list of this traffic. Each request names the earliest one with which it shares most."""
    rows: list[Row] = []
    before: list[Tokens] = []
    by_start: dict[int, list[int]] = {}
    """First token -> the requests whose prompts begin with it, the only ones that share."""
    for request in traffic.requests:
        prompt = tuple(request.prompt_token_ids)
        like, most = -1, 0
        for number in by_start.get(prompt[0], ()) if prompt else ():
            shared = _shared(prompt, before[number], most)
            if shared > most:
                like, most = number, shared
        if prompt:
            by_start.setdefault(prompt[0], []).append(len(before))
        before.append(prompt)
        gap = float(f"{request.gap:.6g}")
        output = request.params.max_tokens or 1
        rows.append((gap, len(prompt), output, request.priority, like, most))
    return tuple(rows)


def _shared(ours: Tokens, theirs: Tokens, least: int) -> int:
    """Tokens of the common prefix, where there are more than `least`."""
    most = min(len(ours), len(theirs))
    if most <= least or ours[: least + 1] != theirs[: least + 1]:
        return least
    count = least + 1
    while count < most and ours[count] == theirs[count]:
        count += 1
    return count


def traffic_of(
    rows: Sequence[Row], rate_per_s: float | None, vocab_size: int, name: str, seed: int = 0
) -> Traffic:
    """Requests of these lengths with random tokens, which share what the list says and no more."""
    draw, last = random.Random(f"{seed} listed"), max(3, vocab_size - 1)
    prompts: list[Tokens] = []
    after: dict[tuple[int, int], set[int]] = {}
    """(request, place) -> tokens that stand there already after that much of its prompt."""
    requests = []
    for number, (gap, length, output, priority, like, shared) in enumerate(rows):
        start = prompts[like][:shared] if like >= 0 else ()
        own = draw.choices(range(2, last + 1), k=length - shared)
        taken = after.setdefault((like, shared) if shared else (-1, 0), set())
        if like >= 0 and shared < len(prompts[like]):
            taken.add(prompts[like][shared])
        # The first token of its own differs from every other prompt's at this place.
        while own and own[0] in taken and len(taken) < last - 1:
            own[0] = draw.randint(2, last)
        if own:
            taken.add(own[0])
        prompts.append((*start, *own))
        requests.append(TimedRequest(gap, prompts[number], fixed_length(output), priority))
    return Traffic(name, tuple(requests), rate_per_s, seed)
