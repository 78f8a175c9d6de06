"""How many pages a request is given, and when.

Paged memory (PagedAttention) gives pages as tokens come. Contiguous memory, which came before it,
gives a request neighbouring pages for all it may ever need when it is admitted; three guesses of
that need are the baselines of Kwon et al. (arXiv 2309.06180, section 6.1).
"""

from __future__ import annotations

from collections.abc import Callable

from minserve.request import Request

Reservation = Callable[[Request], int]
"""Tokens that a request reserves at admission."""


def reservation(kind: str, max_model_len: int) -> Reservation:
    """`max_model_len`: whatever it asks for, the longest request there may be. `power_of_two`: its
    prompt, and its output rounded up to a power of two. `oracle`: exactly what it may reach."""
    if kind == "max_model_len":
        return lambda request: max_model_len
    if kind == "power_of_two":
        return lambda request: min(max_model_len, _rounded(request))
    return lambda request: request.max_len


def _rounded(request: Request) -> int:
    output = max(1, request.max_len - request.num_prompt_tokens)
    return request.num_prompt_tokens + (1 << (output - 1).bit_length())
