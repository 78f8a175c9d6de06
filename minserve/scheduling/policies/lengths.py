"""How long will this answer be? What shortest-job-first asks before anything has been generated.

The truth is known only at the end, so orders take a prediction. The one that ships knows the length
of a workload whose lengths are fixed, and can be made wrong on purpose: S3 (Jin et al., arXiv
2306.06000) and response-length perception (Zheng et al., arXiv 2305.13144) live from predictions
that are mostly right. A predictor that looks at the prompt is given by the caller.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

from minserve.request import Request


class LengthPredictor(Protocol):
    """Guesses a request's number of output tokens once, when it arrives."""

    def predict(self, request: Request) -> float:
        """Output tokens, above 0; need not be whole."""
        ...


class LengthOracle:
    """The most tokens the request may generate, times a random factor.

    That is its true length where end-of-sequence is ignored (fixed-length workloads), and an upper
    bound elsewhere. `error` is the standard deviation of the logarithm of prediction over truth: 0
    is perfect, 0.7 is off by a factor of two one time in three. The factor depends on `seed` and
    the request's name only.
    """

    def __init__(self, error: float = 0.0, seed: int = 0) -> None:
        self._error = error
        self._seed = seed

    def predict(self, request: Request) -> float:
        """See `LengthPredictor.predict`."""
        most = request.max_len - request.num_prompt_tokens
        if not self._error:
            return float(most)
        name = f"{self._seed}/{request.request_id}/{request.sample_index}"
        return most * math.exp(random.Random(name).gauss(0.0, self._error))
