"""Counted beside launches: a row of attention as it was computed, and the time in operators."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minserve import LLM, EngineConfig, SamplingParams
from minserve.bench.counts.attention_rows import attention_rows
from minserve.bench.counts.outside import TimedOps, timed_operators
from minserve.config.sections.kernels import KernelsConfig
from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.cpu.native_layers import NativeLayers
from minserve.kernels.matrix import Matrix
from minserve.models import random_weights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.quantization.formats.dense import DenseFormat
from minserve.spec import LayerSpec, ModelSpec


def model_of(*mixers: AttentionSpec) -> Any:
    """As much of a `LoadedModel` as `attention_rows` reads; its scores are of tens."""
    layers = tuple(LayerSpec(mixer, FeedForwardSpec(24)) for mixer in mixers)
    spec = ModelSpec("llama", 50, 32, layers, 1e-5, 64, tie_embeddings=True)
    weights = random_weights(spec, torch.float32, seed=3)
    return SimpleNamespace(name="small", config=SimpleNamespace(model=spec), weights=weights)


def test_the_softmax_of_a_rows_scores_is_what_attention_returned() -> None:
    sharp = AttentionSpec(4, 2, 8, scale=200.0)
    shared = AttentionSpec(4, 2, 8, cache_layer=0)
    capped = AttentionSpec(4, 2, 8, scale=200.0, softcap=2.0)
    found = attention_rows(model_of(sharp, shared, capped), list(range(20)))
    assert [len(rows) for rows in found.values()] == [4, 4, 4]
    for rows in found.values():
        for row in rows:
            output = row.scores.softmax(-1) @ row.values
            torch.testing.assert_close(output, row.output, rtol=1e-4, atol=1e-5)
    largest = [max(float(row.scores.abs().max()) for row in found[layer]) for layer in (0, 2)]
    assert largest[0] > 3 and 1.5 < largest[1] <= 2.0


def test_rows_over_every_key_are_not_asked_of_a_window() -> None:
    with pytest.raises(ValueError, match=r"small attends to windows, .* choose another model"):
        attention_rows(model_of(AttentionSpec(4, 2, 8, window=4)), [1, 2, 3])


class Ticking:
    """A clock that is a second later each time it is read."""

    def __init__(self) -> None:
        self.read = 0

    def now(self) -> float:
        self.read += 1
        return float(self.read)


@dataclass
class Stack:
    """A `LayerStack` that runs nothing."""

    takes: tuple[bool, ...] = (True,)

    def run(self, *args: Any) -> float:
        return 7.0


class Stacking(TorchOps):
    """Operators that run whole layers in one call."""

    def layer_stack(self, layers: Any) -> Any:
        return Stack()


def test_products_and_stacks_of_timed_operators_are_timed_once_a_call() -> None:
    ops, x = TimedOps(Stacking(), Ticking()), torch.randn(3, 4)
    weights = torch.randn(6, 4)
    product = ops.product(Matrix(DenseFormat(), 6, 4, torch.float32, weights))
    stack = ops.layer_stack([None])
    assert ops.elapsed_s == 0, "preparing is no operator"
    assert torch.equal(product.apply(x), x @ weights.T) and ops.elapsed_s == 1
    assert product.apply_gated(x, "silu").shape == (3, 3) and ops.elapsed_s == 2
    assert stack.takes == (True,)
    assert stack.run(x, x, [], [], [], [], 0, 1) == 7.0 and ops.elapsed_s == 3
    ops.silu_and_mul(x)
    assert ops.elapsed_s == 4


def test_a_format_without_a_product_has_none_when_timed() -> None:
    matrix = Matrix(SimpleNamespace(kind="sparse"), 6, 4, torch.float32, torch.zeros(6, 4))
    assert TimedOps(TorchOps(), Ticking()).product(matrix) is None
    assert TimedOps(TorchOps(), Ticking()).layer_stack([None]) is None


@pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
def test_a_timed_engine_runs_whole_layers_as_a_plain_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the time inside operators is that of other calls than the step's."""
    ran: list[tuple[int, int]] = []
    real = NativeLayers.run

    def run(stack: NativeLayers, *args: Any) -> float | None:
        found = real(stack, *args)
        assert found is not None
        ran.append(args[-2:])
        return found

    monkeypatch.setattr(NativeLayers, "run", run)
    config = EngineConfig(dtype="float32", kernels=KernelsConfig(backend="native"))
    prompt, tokens, calls = [[5, 6, 7]], SamplingParams(max_tokens=4, temperature=0.0), []
    with timed_operators() as made:
        timed = LLM("zoo/base", config)
    for llm in (LLM("zoo/base", config), timed):
        out = llm.generate(prompt, tokens)[0].token_ids
        calls.append((out, tuple(ran)))
        ran.clear()
        llm.close()
    assert calls[0] == calls[1] and len(calls[0][1]) == 4
    assert made[-1].elapsed_s > 0
