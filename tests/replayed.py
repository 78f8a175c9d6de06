"""Engines whose decode steps are replayed, each replay held against the same step made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minserve import build
from minserve.batch import ForwardBatch
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.execution.graphs import LEAST_CONTEXT, GraphKey, GraphRunner
from minserve.execution.runner import Forward
from minserve.loading import load_model
from minserve.request import SamplingParams


class CheckedRunner(GraphRunner):
    """Runs every replayed step a second time, prepared anew under its full key, and compares."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.keys: list[GraphKey] = []
        self.bit_equal: list[bool] = []

    def _forward(self, host: ForwardBatch, batch: ForwardBatch) -> Forward:
        result = super()._forward(host, batch)
        key = GraphRunner.key(self, host)
        if key is not None:
            logits = self._logits[: key.rows]
            replayed = logits.clone()
            self.prepare(key)()
            self.keys.append(key)
            self.bit_equal.append(torch.equal(replayed, logits))
            logits.copy_(replayed)
        return result


class BlindRunner(CheckedRunner):
    """Finds graphs by their rows alone."""

    def key(self, batch: ForwardBatch) -> GraphKey | None:
        key = super().key(batch)
        return key and replace(key, longest=LEAST_CONTEXT)


def engine_of(
    folder: Path,
    values: dict[str, Any],
    runner: type[GraphRunner] = CheckedRunner,
    poison: bool = True,
) -> Engine:
    """An engine that replays by `runner` where `values` switch graphs on; its pages hold NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "GraphRunner", runner)
        loaded = load_model(folder, EngineConfig().with_values(values), progress=False)
        engine = build.build_engine(loaded)
    if poison:
        for pages in engine._runner._attention.caches:
            for part in pages:
                part.fill_(float("nan"))
    return engine


def serve(
    engine: Engine, lens: tuple[int, ...], most_tokens: int, **params: Any
) -> list[list[int]]:
    """Tokens of prompts of these lengths that arrive two steps apart and end at different times, so
    that batches grow and shrink."""
    generator = torch.Generator().manual_seed(1)
    vocab = engine.config.model.vocab_size
    prompts = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lens]
    requests, steps = [], 0
    while engine.has_work or len(requests) < len(prompts):
        if steps % 2 == 0 and len(requests) < len(prompts):
            index = len(requests)
            sampling = SamplingParams(
                max_tokens=most_tokens - index % 3, ignore_eos=True, seed=index, **params
            )
            requests += engine.add(str(index), prompts[index], sampling)
        engine.step()
        steps += 1
    return [request.output_token_ids for request in requests]
