"""How many pages a request gets, and when.

Paged memory (PagedAttention) adds a page when a token needs it. Contiguous memory, the older
method, gives a request neighbouring pages at admission for all the tokens it may reach. The three
estimates of that number are the baselines of Kwon et al. (arXiv 2309.06180, section 6.1).
"""

from __future__ import annotations

from collections.abc import Callable

from minserve.request import Request

Reservation = Callable[[Request], int]
"""Tokens that a request reserves at admission."""


def reservation(kind: str, max_model_len: int) -> Reservation:
    """How many tokens a request reserves.

    `max_model_len`: the longest request that can be sent, whatever this one asks for.
    `power_of_two`: its prompt, plus its output rounded up to a power of two. `oracle`: exactly
    what it may reach.
    """
    if kind == "max_model_len":
        return lambda request: max_model_len
    if kind == "power_of_two":
        return lambda request: min(max_model_len, _rounded(request))
    return lambda request: request.max_len


def _rounded(request: Request) -> int:
    output = max(1, request.max_len - request.num_prompt_tokens)
    return request.num_prompt_tokens + (1 << (output - 1).bit_length())
