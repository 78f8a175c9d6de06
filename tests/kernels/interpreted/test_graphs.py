"""Replayed decode steps on the Triton kernels, interpreted: the tokens of eager steps, and bit for
bit the logits of the same padded step made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models.oracle import random_model, save
from replayed import BlindRunner, engine_of, serve

LENS = (61, 3, 47)
"""One context crosses 64 tokens: the next bound is large enough for a decode in two parts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
    )
    return save(random_model(config, seed=5), tmp_path_factory.mktemp("graphs"))


def values(graphs: bool, pool_tokens: int = 1024) -> dict[str, Any]:
    return {
        "device": "cpu",
        "dtype": "float32",
        "kernels.backend": "triton",
        "kernels.cuda_graphs": graphs,
        "memory.kv_bytes": pool_tokens * 2 * 16 * 4,
        "memory.block_size": 16,
        "scheduling.max_num_seqs": 3,
        "scheduling.max_num_batched_tokens": 256,
        "scheduling.max_model_len": 256,
    }


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return serve(engine_of(folder, values(graphs=False)), LENS, 12)


@pytest.mark.parametrize("pool_tokens", [1024, 144], ids=["ample", "preempting"])
def test_replayed_steps_are_eager_ones_bit_for_bit(
    folder: Path, expected: list[list[int]], pool_tokens: int
) -> None:
    engine = engine_of(folder, values(graphs=True, pool_tokens=pool_tokens))
    assert serve(engine, LENS, 12) == expected
    runner = engine._runner
    assert runner.bit_equal and all(runner.bit_equal)
    assert {key.longest for key in runner.keys} >= {64, 256}
    assert {key.rows for key in runner.keys} >= {1, 2}
    assert (engine.trace.totals.preemptions > 0) == (pool_tokens == 144)


def test_a_key_without_the_context_replays_another_number_of_parts(folder: Path) -> None:
    engine = engine_of(folder, values(graphs=True), BlindRunner)
    serve(engine, LENS, 12)
    runner = engine._runner
    wrong = {
        key.longest for key, same in zip(runner.keys, runner.bit_equal, strict=True) if not same
    }
    assert wrong == {256}
