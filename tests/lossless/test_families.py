"""Soft caps, sandwich norms, multipliers and layers without positions beside the switches that move
rows about: tokens and log probabilities are those of transformers in true float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.scripted import KINDS
from lossless.windowed import PAGE, SIZES, VOCAB, ask, engine_of, outputs, prompt, run
from models.oracle import logits, patch_to_true_float64, random_model, save

from minserve.build import build_engine
from minserve.clock import VirtualClock
from minserve.config import ConfigError
from minserve.engine import Engine
from minserve.engine.parts import EngineParts
from minserve.kernels.matrix import Matrix
from minserve.layers import Embedding, RMSNorm
from minserve.loading import load_model
from minserve.quantization.formats import FORMATS
from minserve.request import Request

SHARED = SIZES | {"head_dim": 8, "pad_token_id": None}
CAPS = {"attn_logit_softcapping": 0.9, "final_logit_softcapping": 2.5}
# A window that no request outgrows is dropped, so that trees may be drafted.
WIDE = {"sliding_window": 1024}


def configuration(name: str) -> Any:
    from transformers import Gemma2Config, GemmaConfig, GraniteConfig, SmolLM3Config

    if name == "gemma2":
        return Gemma2Config(**SHARED, **CAPS, **WIDE, query_pre_attn_scalar=20)
    if name == "gemma2 windows":
        return Gemma2Config(**SHARED, **CAPS, sliding_window=20, query_pre_attn_scalar=20)
    if name == "granite":
        return GraniteConfig(
            **SIZES, attention_multiplier=0.4, embedding_multiplier=3.0, mlp_bias=True,
            residual_multiplier=0.6, logits_scaling=4.0, attention_bias=True,
        )  # fmt: skip
    if name == "smollm3":
        return SmolLM3Config(**SHARED, no_rope_layers=[1, 0, 1, 0], use_sliding_window=False)
    return GemmaConfig(**SHARED)


NAMES = ("gemma", "gemma2", "gemma2 windows", "granite", "smollm3")
LENGTHS, NEW = (50, 7, 31, 44), 16
PAGE_BYTES = PAGE * 4 * 2 * 2 * 8 * 8
"""Of 4 layers, with 2 KV heads of 8 numbers of 8 bytes."""
VARIANTS: dict[str, dict[str, Any]] = {
    "prefix cache": {"memory.prefix_cache": "hash", "scheduling.max_num_batched_tokens": 24},
    "preemption": {"memory.kv_bytes": 16 * PAGE_BYTES, "scheduling.max_model_len": 80},
    "graphs": {"kernels.cuda_graphs": True},
    "padding": {"kernels.padding": "longest"},
    "overlap": {"scheduling.async_scheduling": True},
}


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of transformers, and the directory in which it is saved."""
    folder: Path = tmp_path_factory.mktemp("model")
    model = random_model(configuration(request.param), 5, torch.float64)
    save(model, folder)
    return request.param, patch_to_true_float64(model), folder


def check(model: Any, requests: list[Request]) -> None:
    for request in requests:
        theirs = logits(model, request.token_ids).log_softmax(-1)
        start = request.num_prompt_tokens
        assert request.output_token_ids == theirs.argmax(-1).tolist()[start - 1 : -1]
        found = [each.logprob for each in request.logprobs or []]
        places = range(start - 1, start - 1 + NEW)
        exact = [theirs[i, t].item() for i, t in zip(places, request.output_token_ids, strict=True)]
        assert found == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_and_log_probabilities_are_those_of_transformers(
    family: Any, variant: str, backend: str
) -> None:
    _, model, folder = family
    engine = engine_of(folder, VARIANTS[variant] | {"kernels.backend": backend})
    prompts = [prompt(n, length) for n, length in enumerate(LENGTHS)]
    requests = ask(engine, prompts, NEW, logprobs=0, prompt_logprobs=0)
    run(engine)
    check(model, requests)
    totals = engine.trace.totals
    assert (totals.preemptions > 0) == (variant == "preemption")
    if variant == "prefix cache":
        again = ask(engine, prompts, NEW, logprobs=0)
        run(engine)
        check(model, again)
        assert engine.trace.totals.hit_tokens > 60
    assert len({token for tokens in outputs(requests) for token in tokens}) > 3


def tensors(held: Any) -> Iterator[torch.Tensor]:
    """All tensors in weights, which are dataclasses, tuples and parts with slots."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, (tuple, list)):
        for each in held:
            yield from tensors(each)
    elif isinstance(held, (Matrix, RMSNorm, Embedding)) or is_dataclass(held):
        for name in getattr(held, "__slots__", ()) or [each.name for each in fields(held)]:
            yield from tensors(getattr(held, name))


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_engines_leave_shared_weights_as_they_were(family: Any, backend: str, weights: str) -> None:
    _, _, folder = family
    values = {"kernels.backend": backend, "quantization.weight_format": weights}
    engines = [engine_of(folder, values) for _ in range(2)]
    decoders = [vars(engine)["_runner"]._decoder for engine in engines]
    shared = decoders[0].weights
    assert decoders[1].weights is shared
    before = [each.clone() for each in tensors(shared)]
    assert sum(each.nbytes for each in before) >= shared.nbytes
    found = []
    for engine in engines:
        requests = ask(engine, [prompt(n, length) for n, length in enumerate(LENGTHS)], NEW)
        run(engine)
        found.append(outputs(requests))
    assert found[0] == found[1]
    for now, then in zip(tensors(shared), before, strict=True):
        assert torch.equal(now, then)


def drafting(folder: Path, kind: str, answers: Any, backend: str) -> Engine:
    config = engine_of(folder, {"scheduling.max_model_len": 160, "kernels.backend": backend})
    loaded = load_model(folder, config.config.config, progress=False)
    parts = EngineParts(proposer=KINDS[kind](answers, VOCAB))
    return build_engine(loaded, VirtualClock(), parts)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("kind", ["half", "half tree"])
def test_drafts_change_no_token(family: Any, kind: str, backend: str) -> None:
    name, model, folder = family
    if name == "gemma2 windows" and kind == "half tree":
        with pytest.raises(ConfigError, match="window"):
            drafting(folder, kind, {}, backend)
        return
    prompts = [prompt(n, length) for n, length in enumerate(LENGTHS)]
    plain = engine_of(folder)
    requests = ask(plain, prompts, NEW)
    run(plain)
    answers = {(each.request_id, 0): each.output_token_ids for each in requests}
    engine = drafting(folder, kind, answers, backend)
    drafted = ask(engine, prompts, NEW, logprobs=0)
    run(engine)
    assert outputs(drafted) == outputs(requests)
    check(model, drafted)
    assert sum(engine.trace.totals.speculation.accepted_tokens) > 0


@pytest.mark.slow
def test_compiled_layers_are_the_same_layers(family: Any) -> None:
    _, model, folder = family
    engine = engine_of(folder, {"kernels.compile": True})
    requests = ask(engine, [prompt(n, length) for n, length in enumerate(LENGTHS)], NEW, logprobs=0)
    run(engine)
    check(model, requests)
