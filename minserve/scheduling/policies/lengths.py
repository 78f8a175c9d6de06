"""Predicts how long an answer will be; shortest-job-first needs it before anything is generated.

The true length is known only at the end, so orders use a prediction. The predictor in this file
knows the lengths of a fixed-length workload and can be made wrong on purpose, because S3 (Jin et
al., arXiv 2306.06000) and response-length perception (Zheng et al., arXiv 2305.13144) rely on
predictions that are only mostly right. A caller can pass a predictor that reads the prompt.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

from minserve.request import Request


class LengthPredictor(Protocol):
    """Predicts a request's number of output tokens once, when it arrives."""

    def predict(self, request: Request) -> float:
        """Output tokens, above 0; may be a fraction."""
        ...


class LengthOracle:
    """The most tokens the request may generate, times a random factor.

    This is its true length if end-of-sequence is ignored (fixed-length workloads), and an upper
    bound otherwise. `error` is the standard deviation of the logarithm of prediction over truth: 0
    is perfect, 0.7 is off by a factor of two one time in three. The factor depends only on `seed`
    and the request's name.
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
