"""Moves a request from one engine to another, with the tokens that are computed already.

Used by live migration (Llumnix, Sun et al., arXiv 2406.03243), and by prefill apart from decode
(DistServe, Zhong et al., arXiv 2401.09670). An `ExportedRequest` holds plain values and tensors on
the CPU, so it can be pickled and sent to another process. The other engine needs the same weights;
its pages, pool, operators and policies may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.inputs.checks import MOST, shorten
from minserve.inputs.wording import with_article
from minserve.memory import ExportedGroup, ExportedPages, KVManager
from minserve.request import (
    InvalidRequestError,
    LogitsMask,
    Request,
    SamplingParams,
    TokenLogprobs,
)
from minserve.spec import ModelSpec


@dataclass(frozen=True)
class ExportedSample:
    """One sample: its tokens, what has been recorded about it, and its cached tokens.

    Clocks of two engines may differ, so times are ages in seconds when it was exported.
    """

    index: int
    token_ids: tuple[int, ...]
    """Prompt and output."""
    seed: int
    max_len: int
    priority: int
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...]
    arrival_age_s: float
    first_scheduled_age_s: float | None
    first_token_age_s: float | None
    last_token_age_s: float | None
    num_preemptions: int
    num_cached_tokens: int
    num_proposed_tokens: int
    num_accepted_tokens: int
    num_ever_computed: int
    pages: ExportedPages | None
    """None: nothing is computed."""


@dataclass(frozen=True)
class ExportedRequest:
    """A request between two engines: all its samples that had not ended."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stream_text: bool
    model: ModelSpec
    dtype: str
    weights: str
    """`quantization.weight_format`: other weights are another model."""
    samples: tuple[ExportedSample, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(sample.pages.nbytes for sample in self.samples if sample.pages is not None)


def exported(request: Request, memory: KVManager, clock: Clock) -> ExportedSample:
    """A copy of one sample. No step may be in flight."""
    now = clock.now()

    def age(event_s: float | None) -> float | None:
        return None if event_s is None else now - event_s

    return ExportedSample(
        index=request.sample_index,
        token_ids=tuple(map(int, request.token_ids)),
        seed=request.seed,
        max_len=request.max_len,
        priority=request.priority,
        logprobs=tuple(request.logprobs),
        prompt_logprobs=tuple(request.prompt_logprobs),
        arrival_age_s=now - request.arrival_s,
        first_scheduled_age_s=age(request.first_scheduled_s),
        first_token_age_s=age(request.first_token_s),
        last_token_age_s=age(request.last_token_s),
        num_preemptions=request.num_preemptions,
        num_cached_tokens=request.num_cached_tokens,
        num_proposed_tokens=request.num_proposed_tokens,
        num_accepted_tokens=request.num_accepted_tokens,
        num_ever_computed=request.num_ever_computed,
        pages=memory.away.export(request),
    )


def imported(
    moved: ExportedRequest, sample: ExportedSample, masks: tuple[LogitsMask, ...], clock: Clock
) -> Request:
    """The sample as a request of another engine, which counts nothing as computed yet."""
    now = clock.now()

    def event_s(age_s: float | None) -> float | None:
        return None if age_s is None else now - age_s

    return Request(
        moved.request_id,
        list(moved.prompt_token_ids),
        moved.params,
        now - sample.arrival_age_s,
        sample.seed,
        sample.index,
        sample.max_len,
        token_ids=list(sample.token_ids),
        priority=sample.priority,
        logprobs=list(sample.logprobs),
        prompt_logprobs=list(sample.prompt_logprobs),
        first_scheduled_s=event_s(sample.first_scheduled_age_s),
        first_token_s=event_s(sample.first_token_age_s),
        last_token_s=event_s(sample.last_token_age_s),
        num_preemptions=sample.num_preemptions,
        num_cached_tokens=sample.num_cached_tokens,
        num_proposed_tokens=sample.num_proposed_tokens,
        num_accepted_tokens=sample.num_accepted_tokens,
        num_ever_computed=sample.num_ever_computed,
        masks=masks,
    )


def check_import(moved: object, config: ResolvedConfig, max_request_tokens: int) -> ExportedRequest:
    """Raise InvalidRequestError unless an engine of this configuration can continue the request."""
    if not isinstance(moved, ExportedRequest):
        raise InvalidRequestError(
            f"import_request({shorten(moved)}): expected what export_request returned"
        )
    try:
        _check_parts(moved, ExportedRequest, "")
        _check_samples(moved, config.model.vocab_size)
    except ValueError as error:
        raise InvalidRequestError(
            f"import_request: this export is damaged, {error}: pass on what export_request "
            "returned, unchanged"
        ) from None
    name = f"request {moved.request_id}"
    if moved.model != config.model and moved.model.up_to(0) == config.model.up_to(0):
        raise InvalidRequestError(
            f"{name}: its pages are of layers with other windows, because a window that "
            f"scheduling.max_model_len does not exceed ({config.max_model_len} here) counts as "
            "none: give both engines the same max_model_len"
        )
    if moved.model != config.model:
        raise InvalidRequestError(
            f"{name}: its pages were computed by {with_article(moved.model.family)} model of "
            f"{moved.model.num_parameters()} parameters, and this engine serves another: import it "
            "where the same model is served"
        )
    if moved.dtype != config.config.dtype:
        raise InvalidRequestError(
            f"{name}: its pages are {moved.dtype}, and this engine computes in "
            f"{config.config.dtype}: give both engines the same EngineConfig.dtype"
        )
    weights = config.config.quantization.weight_format
    if moved.weights != weights:
        raise InvalidRequestError(
            f"{name}: its pages were computed by {moved.weights} weights, and this engine's are "
            f"{weights}: give both engines the same quantization.weight_format"
        )
    if any(sample.pages for sample in moved.samples) and not config.config.memory.kv_cache:
        raise InvalidRequestError(
            f"{name}: memory.kv_cache=False keeps no pages, and it brings some: import it where "
            "the cache is on"
        )
    parts = [group for one in moved.samples if one.pages for group in one.pages.groups]
    kinds = {tensor.dtype for group in parts for tensor in group.tensors} - {config.dtype}
    if kinds:
        raise InvalidRequestError(f"{name}: its pages say {moved.dtype}, and hold {kinds.pop()}")
    longest = max(sample.max_len for sample in moved.samples)
    if longest > max_request_tokens:
        raise InvalidRequestError(
            f"{name}: it may reach {longest} tokens, and this engine serves {max_request_tokens}: "
            "raise scheduling.max_model_len and memory.kv_bytes, or send it with fewer max_tokens"
        )
    return moved


# -- the parts of an export, which may come from another process ----------------------------------

_PARTS = (ExportedRequest, ExportedSample, ExportedPages, ExportedGroup, TokenLogprobs)
_MISSING = object()


@cache
def _declared(part: type) -> dict[str, Any]:
    return get_type_hints(part)


def _check_parts(value: object, kind: Any, where: str) -> None:
    """Raise ValueError unless `value` and everything in it has its declared type. Parameters, model
    and cache groups are checked as a whole elsewhere."""
    if isinstance(kind, UnionType):
        if value is None:
            return
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if isinstance(value, tuple) and kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        if not isinstance(value, tuple) or len(value) != len(kinds):
            raise ValueError(f"{where} is {shorten(value)}")
        for index, (one, of) in enumerate(zip(value, kinds, strict=True)):
            _check_parts(one, of, f"{where}[{index}]")
        return
    is_right = isinstance(value, (int, float) if kind is float else kind)
    is_right &= isinstance(value, bool) == (kind is bool)
    if isinstance(value, int):
        is_right &= -MOST <= value <= MOST
    if isinstance(value, Tensor):
        is_right &= value.device.type == "cpu"
    if not is_right:
        raise ValueError(f"{where} is {'missing' if value is _MISSING else shorten(value)}")
    if kind in _PARTS:
        for name, of in _declared(kind).items():
            _check_parts(getattr(value, name, _MISSING), of, f"{where}.{name}" if where else name)


def _check_samples(moved: ExportedRequest, vocab_size: int) -> None:
    """Raise ValueError unless these samples can go on: what a step relies on without a check."""
    indices, prompt = [sample.index for sample in moved.samples], moved.prompt_token_ids
    if not indices or len(set(indices)) < len(indices) or min(indices) < 0:
        raise ValueError(f"its samples have the numbers {indices}")
    for sample in moved.samples:
        name, tokens = f"sample {sample.index}", sample.token_ids
        if any(not 0 <= token < vocab_size for token in (*prompt, *tokens)):
            raise ValueError(f"{name} has a token outside the vocabulary of {vocab_size}")
        if tokens[: len(prompt)] != prompt:
            raise ValueError(f"{name} does not begin with the prompt")
        if len(tokens) >= sample.max_len:
            raise ValueError(f"{name} has {len(tokens)} tokens and may reach {sample.max_len}")
        events = (sample.first_scheduled_age_s, sample.first_token_age_s, sample.last_token_age_s)
        ages = (sample.arrival_age_s, *events)
        if not all(age is None or math.isfinite(age) for age in ages):
            raise ValueError(f"{name} has the ages {ages}")
