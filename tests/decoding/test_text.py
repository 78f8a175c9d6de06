"""Text with drafts: stop strings, bad words and streams are those of single steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from decoding.scripted import KINDS

from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.engine.parts import CONFIGURED, EngineParts
from minserve.loading import LoadedModel, load_model
from minserve.request import Request, SamplingParams

PROMPTS = ("def add(a, b):\n", "import os\n\nclass ", "for i in range(")
NUM = 40


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    config = EngineConfig(device="cpu", dtype="float64")
    return load_model("zoo/draft", config, progress=False)


def run(
    loaded: LoadedModel, params: SamplingParams, parts: EngineParts = CONFIGURED
) -> tuple[Engine, list[Request], list[list[str]]]:
    """The requests, and each one's text after every step."""
    engine = build_engine(loaded, parts=parts)
    requests: list[Request] = []
    for number, prompt in enumerate(PROMPTS):
        requests += engine.add(str(number), loaded.encode(prompt), params, stream_text=True)
    texts: list[list[str]] = [[] for _ in requests]
    while engine.has_work:
        engine.step()
        for text, request in zip(texts, requests, strict=True):
            seen = engine.text_of(request)
            if not text or text[-1] != seen:
                text.append(seen)
    return engine, requests, texts


def some_words(loaded: LoadedModel) -> tuple[str, ...]:
    """Pieces of what the model writes, cut across its tokens."""
    engine, requests, _ = run(loaded, SamplingParams(max_tokens=NUM, temperature=0.0))
    texts = [engine.text_of(request) for request in requests]
    return tuple(text[at : at + 4] for text, at in zip(texts, (9, 17, 23), strict=True))


PARAMS: dict[str, dict[str, Any]] = {
    "stop strings": {},
    "stop strings, kept": {"include_stop_str_in_output": True},
    "stop strings, sampled": {"temperature": 0.9, "seed": 3, "n": 2},
    "stop strings, later": {"min_tokens": 12},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PARAMS)
def test_texts_end_at_the_same_stop_string(name: str, kind: str, loaded: LoadedModel) -> None:
    params = SamplingParams(
        **({"max_tokens": NUM, "temperature": 0.0, "stop": some_words(loaded)} | PARAMS[name])
    )
    check(loaded, params, kind, at_least_one="stop")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_words_stay_banned_on_proposed_rows(kind: str, loaded: LoadedModel) -> None:
    words = [word for word in some_words(loaded) if word.strip()]
    params = SamplingParams(max_tokens=NUM, temperature=0.0, bad_words=words)
    check(loaded, params, kind)


def check(
    loaded: LoadedModel, params: SamplingParams, kind: str, at_least_one: str | None = None
) -> None:
    plain, answers, _ = run(loaded, params)
    known = {(one.request_id, one.sample_index): one.output_token_ids for one in answers}
    vocab = loaded.config.model.vocab_size
    parts = EngineParts(proposer=KINDS[kind](known, vocab))
    engine, requests, texts = run(loaded, params, parts)
    assert sum(engine.trace.totals.speculation.proposed_tokens) > 0
    for request, answer, text in zip(requests, answers, texts, strict=True):
        assert request.output_token_ids == answer.output_token_ids
        assert (request.finish_reason, request.stop_reason) == (
            answer.finish_reason,
            answer.stop_reason,
        )
        assert engine.text_of(request) == plain.text_of(answer)
        # A stream only grows, until its end may cut what was a stop string.
        assert all(later.startswith(earlier) for earlier, later in pairwise(text[:-1]))
        assert text[-1] == plain.text_of(answer)
    if at_least_one is not None:
        assert at_least_one in [request.finish_reason for request in requests]
