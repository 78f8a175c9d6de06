"""After a batch could not be sampled: samples each row alone, so that the failure of a row ends
only its own request.

Runs only after a batch has failed, so speed does not matter. Knows nothing about requests.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minserve.batch import SamplingBatch
from minserve.sampling.logprobs import Logprobs
from minserve.sampling.sampler import INVALID_TOKEN, SampledTokens, Sampler


def sample_alone(
    sampler: Sampler, logits: Tensor, batch: SamplingBatch
) -> tuple[SampledTokens, dict[int, Exception]]:
    """As `Sampler.sample`, row by row: `[num_samples, vocab]` -> tokens, and the errors of rows
    that failed. Their token is INVALID_TOKEN."""
    tokens = torch.full((batch.num_samples,), INVALID_TOKEN, device=logits.device)
    parts: list[Logprobs] = []
    errors: dict[int, Exception] = {}
    reported = set(batch.logprob_rows.tolist())
    for row in range(batch.num_samples):
        entry = _empty(batch.num_logprobs, logits)
        try:
            sampled = sampler.sample(logits[row : row + 1], sampling_of(batch, row))
            tokens[row] = sampled.token_ids[0]
            entry = sampled.logprobs or entry
        except Exception as error:
            errors[row] = error
        if row in reported:
            parts.append(entry)
    logprobs = None
    if parts:
        logprobs = Logprobs(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("logprobs", "ranks", "top_token_ids", "top_logprobs")
            )
        )
    return SampledTokens(tokens, logprobs), errors


def sampling_of(batch: SamplingBatch, row: int) -> SamplingBatch:
    """One row of a batch as a batch; it reports as many alternatives as the whole batch does."""
    history = batch.history[:, batch.history[0] == row].clone()
    biased = batch.bias_tokens[0] == row
    bias_tokens = batch.bias_tokens[:, biased].clone()
    masked, reported = batch.mask_rows == row, batch.logprob_rows == row
    history[0] = bias_tokens[0] = 0
    return replace(
        batch,
        params=batch.params[:, row : row + 1],
        history=history,
        bias_tokens=bias_tokens,
        bias_values=batch.bias_values[biased],
        logprob_rows=torch.zeros_like(batch.logprob_rows[reported]),
        num_greedy=int(batch.params[0, row] == 0),
        mask_rows=torch.zeros_like(batch.mask_rows[masked]),
        mask_bits=batch.mask_bits[masked],
    )


def _empty(num_top: int, logits: Tensor) -> Logprobs:
    """The report of a row without logprobs."""
    none = logits.new_full((1,), float("nan"), dtype=torch.float32)
    ids = torch.zeros(1, num_top, dtype=torch.int64, device=logits.device)
    return Logprobs(none, ids.new_zeros(1), ids, none.expand(1, num_top))
