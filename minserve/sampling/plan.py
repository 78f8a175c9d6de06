"""From the requests whose next token is drawn in this step to the tensors that the sampler needs.

Runs on the host at every step, so it must cost only tens of microseconds: Python handles each
request once, and the rest is a few numpy calls over the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch

from minserve.batch import SamplingBatch
from minserve.request import InvalidRequestError, Request, SamplingParams
from minserve.sampling.history import token_counts
from minserve.sampling.random import uniforms

_ROW = attrgetter(
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_PLAIN_GREEDY = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)
_NOTHING_PROPOSED: Mapping[int, Sequence[int]] = {}


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Refuse parameters that name tokens the model does not have.

    Called when a request arrives: an id out of range would otherwise fail (on a GPU: abort the
    process) in the middle of a batch that other requests share.

    Raises InvalidRequestError.
    """
    named: dict[str, Collection[int]] = {
        "logit_bias": params.logit_bias,
        "stop_token_ids": params.stop_token_ids,
        "allowed_token_ids": params.allowed_token_ids or (),
    }
    for name, tokens in named.items():
        largest = max(tokens, default=0)  # never negative: SamplingParams has checked it
        if largest >= vocab_size:
            raise InvalidRequestError(
                f"SamplingParams.{name} names token {largest}, and this model's tokens are 0 to "
                f"{vocab_size - 1}"
            )


def plan_sampling(
    requests: Sequence[Request],
    *,
    eos_token_ids: Collection[int] = (),
    positions: Sequence[int] | None = None,
    proposed: Mapping[int, Sequence[int]] = _NOTHING_PROPOSED,
) -> SamplingBatch:
    """How to draw the next token of each request, in this order; tensors on the CPU.

    `eos_token_ids`: the model's; banned, like the request's own stop ids, until `min_tokens` are
    generated. Under `ignore_eos` they are not banned, because they end nothing. `positions`: the
    position in prompt plus output of each token being drawn; `num_tokens` unless the caller has
    tokens in flight. A request may occur several times at different positions. `proposed`: for
    rows whose token is drawn after proposed tokens, these tokens, in order; they come after the
    request's own, and penalties and masks see both. Token ids must be in range: see
    `check_token_ids`. A row depends only on its request, position and proposed tokens: if this
    raises, planning the requests one by one finds the request that causes it.
    """
    params = [request.params for request in requests]
    if positions is None:
        positions = [len(request.token_ids) for request in requests]
    num = len(params)
    edited, masked, reported = _special_rows(requests, params)
    rows = _numbers(params)
    sampled = rows[:, 0] > 0.0
    num_greedy = num - int(np.count_nonzero(sampled))
    penalised = ((rows[:, 4] != 1.0) | (rows[:, 5:] != 0.0).any(axis=1)).nonzero()[0]
    if num_greedy == num and not (edited or reported or masked or len(penalised)):
        return _plain_greedy(num)

    packed = np.zeros((8, num))
    packed[:7] = rows.T
    if num_greedy < num:
        seeds = [request.seed for request in requests]
        packed[7] = uniforms(seeds, [request.sample_index for request in requests], positions)
    nucleus = sampled & (rows[:, 2] < 1.0)
    mask_rows, mask_bits, bans = (
        _masks(requests, positions, proposed, masked) if masked else _NO_MASKS
    )
    edited = sorted({*edited, *bans}) if bans else edited
    bias_tokens, bias_values = _biases(requests, positions, edited, eos_token_ids, bans)
    return SamplingBatch(
        params=torch.from_numpy(packed),
        history=_history(requests, proposed, penalised) if len(penalised) else _NO_HISTORY,
        bias_tokens=bias_tokens,
        bias_values=bias_values,
        logprob_rows=torch.tensor(reported, dtype=torch.int64) if reported else _NO_ROWS,
        num_logprobs=max((params[index].logprobs or 0 for index in reported), default=0),
        num_greedy=num_greedy,
        max_top_k=int((rows[:, 1] * sampled).max(initial=0.0)),
        uses_top_p=bool(nucleus.any()),
        needs_mass=bool((nucleus & (rows[:, 1] == 0.0)).any()),
        uses_min_p=bool((sampled & (rows[:, 3] > 0.0)).any()),
        logprob_counts=tuple(params[index].logprobs or 0 for index in reported),
        mask_rows=mask_rows,
        mask_bits=mask_bits,
    )


def _special_rows(
    requests: Sequence[Request], params: Sequence[SamplingParams]
) -> tuple[list[int], list[int], list[int]]:
    """The rows with logit biases or bans, with masks, and with logprobs to report."""
    edited: list[int] = []
    masked: list[int] = []
    reported: list[int] = []
    for index, each in enumerate(params):
        ends = each.stop_token_ids or not each.ignore_eos
        if each.logit_bias or (each.min_tokens and ends):
            edited.append(index)
        if each.logprobs is not None:
            reported.append(index)
        if requests[index].masks:
            masked.append(index)
    return edited, masked, reported


def _numbers(params: Sequence[SamplingParams]) -> npt.NDArray[np.float64]:
    """`[num_requests, 7]`: the fields of `_ROW` of each request."""
    # If all requests share one SamplingParams object, as in an offline run, it is read once.
    if len(set(map(id, params))) == 1:
        return np.array([_ROW(params[0])]).repeat(len(params), axis=0)
    return np.array([_ROW(each) for each in params]).reshape(len(params), 7)


_NO_ROWS = torch.zeros(0, dtype=torch.int64)
_NO_HISTORY = torch.zeros(3, 0, dtype=torch.int64)
_NO_BIAS = (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
_Masks = tuple[torch.Tensor, torch.Tensor, Mapping[int, set[int]]]
_NO_MASKS: _Masks = (_NO_ROWS, torch.zeros(0, 0, dtype=torch.uint8), {})


@lru_cache(maxsize=1024)
def _plain_greedy(num: int) -> SamplingBatch:
    """The batch of `num` greedy rows and nothing else, which is the same at every step."""
    return SamplingBatch(
        params=torch.tensor(_PLAIN_GREEDY, dtype=torch.float64)[:, None].repeat(1, num),
        history=_NO_HISTORY,
        bias_tokens=_NO_BIAS[0],
        bias_values=_NO_BIAS[1],
        logprob_rows=_NO_ROWS,
        num_logprobs=0,
        num_greedy=num,
        max_top_k=0,
        uses_top_p=False,
        needs_mass=False,
        uses_min_p=False,
    )


def _history(
    requests: Sequence[Request],
    proposed: Mapping[int, Sequence[int]],
    penalised: npt.NDArray[np.int64],
) -> torch.Tensor:
    """`SamplingBatch.history` of the penalised rows."""
    parts = [token_counts(requests[row], proposed.get(row, ())) for row in penalised.tolist()]
    tokens = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    rows = penalised.repeat([len(part[0]) for part in parts])
    return torch.from_numpy(np.stack([rows, tokens, counts]))


def _masks(
    requests: Sequence[Request],
    positions: Sequence[int],
    proposed: Mapping[int, Sequence[int]],
    masked: list[int],
) -> _Masks:
    """`SamplingBatch.mask_rows` and `mask_bits`, and the single tokens that masks ban, by row."""
    rows: list[int] = []
    bits: list[npt.NDArray[np.uint8]] = []
    bans: dict[int, set[int]] = {}
    for row in masked:
        request, banned = requests[row], set[int]()
        allowed: npt.NDArray[np.uint8] | None = None
        tokens: Sequence[int] = request.token_ids
        if row in proposed:
            tokens = [*tokens, *proposed[row]]
        elif positions[row] < len(tokens):
            tokens = tokens[: positions[row]]
        for mask in request.masks:
            answer = mask.at(request, tokens)
            banned.update(answer.banned)
            if answer.allowed is not None:
                # Tokens beyond the end of the shorter mask are not allowed.
                length = len(answer.allowed) if allowed is None else len(allowed)
                both = answer.allowed[:length]
                allowed = both if allowed is None else both & allowed[: len(both)]
        if banned:
            bans[row] = banned
        if allowed is not None:
            rows.append(row)
            bits.append(allowed)
    if not rows:
        return _NO_ROWS, _NO_MASKS[1], bans
    packed = np.zeros((len(rows), max(map(len, bits))), dtype=np.uint8)
    for row, each in enumerate(bits):
        packed[row, : len(each)] = each
    return torch.tensor(rows, dtype=torch.int64), torch.from_numpy(packed), bans


def _biases(
    requests: Sequence[Request],
    positions: Sequence[int],
    edited: list[int],
    eos_token_ids: Collection[int],
    bans: Mapping[int, set[int]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`SamplingBatch.bias_tokens` and `bias_values`: logit biases, and bans by `min_tokens` and by
    masks (`bans`, by row)."""
    pairs: list[tuple[int, int]] = []
    values: list[float] = []
    for row in edited:
        request = requests[row]
        biases = dict(request.params.logit_bias)
        if positions[row] - request.num_prompt_tokens < request.params.min_tokens:
            enders = set(request.params.stop_token_ids)
            if not request.params.ignore_eos:
                enders.update(eos_token_ids)
            biases.update(dict.fromkeys(enders, float("-inf")))
        if row in bans:
            biases.update(dict.fromkeys(bans[row], float("-inf")))
        pairs.extend((row, token) for token in biases)
        values.extend(biases.values())
    if not pairs:
        return _NO_BIAS
    tokens = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
    return tokens, torch.tensor(values, dtype=torch.float64)
