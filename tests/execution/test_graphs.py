"""Replayed decode steps write the tokens of eager ones, and a graph that missed anything does not.

On a CPU nothing is captured: what is replayed is the step as it was first prepared, with the plan
and the integers of that time, over the static buffers. What a graph would miss is missed here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.oracle import random_model, save
from replayed import BlindRunner, CheckedRunner, engine_of, serve

from minserve.config import ConfigError, EngineConfig
from minserve.execution.graphs import GraphRunner, StaticInputs
from minserve.execution.padding import ladder, padding_lens
from minserve.loading import load_model

LENS = (50, 3, 61, 9, 30, 58)
"""Contexts that cross 64 tokens at different steps."""
SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 128, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module", params=["full", "window"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, MistralConfig

    config = LlamaConfig(**SIZES)
    if request.param == "window":
        config = MistralConfig(**SIZES, sliding_window=20)
    return save(random_model(config, seed=5), tmp_path_factory.mktemp("graphs"))


def values(graphs: bool = True, **more: Any) -> dict[str, Any]:
    fields = {
        "device": "cpu", "dtype": "float64", "kernels.backend": "torch",
        "kernels.cuda_graphs": graphs, "memory.block_size": 8, "memory.check_integrity": True,
        "scheduling.max_num_seqs": 5, "scheduling.max_model_len": 96,
        "scheduling.max_num_batched_tokens": 64,
    }  # fmt: skip
    return fields | {name.replace("__", "."): value for name, value in more.items()}


@pytest.mark.parametrize("most_rows", [5, 3, 1])
@pytest.mark.parametrize("overlap", [False, True])
def test_replayed_steps_write_the_tokens_of_eager_ones(model_dir, most_rows, overlap):
    expected = serve(engine_of(model_dir, values(graphs=False)), LENS, 20)
    engine = engine_of(
        model_dir,
        values(kernels__cuda_graph_max_rows=most_rows, scheduling__async_scheduling=overlap),
    )
    assert serve(engine, LENS, 20) == expected
    runner = engine._runner
    assert runner.bit_equal and all(runner.bit_equal)
    assert {key.rows for key in runner.keys} == set(ladder(most_rows))
    assert {key.longest for key in runner.keys} == {64, 96}
    # Captured once per key, and counted.
    assert engine.trace.totals.compiled_graphs == len(set(runner.keys)) < len(runner.keys)
    assert engine.trace.totals.compile_s > 0


def test_sampled_tokens_and_logprobs_are_those_of_eager_steps(model_dir):
    wanted = {"temperature": 1.0, "top_k": 20, "logprobs": 3}
    runs = [
        serve(engine_of(model_dir, values(graphs=graphs)), LENS, 12, **wanted)
        for graphs in (False, True)
    ]
    assert runs[0] == runs[1]


def test_preempted_requests_and_their_replacements_are_replayed_alike(model_dir):
    token_bytes = 2 * 2 * 2 * 16 * 8
    plain = engine_of(model_dir, values(graphs=False))
    # Behind a window pages are freed, so that fewer of them serve as many requests.
    num_tokens = 100 if any(layer.mixer.window for layer in plain.config.model.layers) else 150
    small = {"memory__kv_bytes": num_tokens * token_bytes}
    expected = serve(plain, LENS, 20)
    engine = engine_of(model_dir, values(**small))
    assert serve(engine, LENS, 20) == expected
    assert engine.trace.totals.preemptions > 0 and all(engine._runner.bit_equal)


def test_padding_writes_to_the_scratch_page_alone(model_dir):
    engines = [engine_of(model_dir, values(graphs=graphs)) for graphs in (False, True)]
    assert serve(engines[0], LENS[:3], 6) == serve(engines[1], LENS[:3], 6)
    assert engines[1].trace.totals.padded_rows > 0
    plain, replayed = (engine._runner._attention.caches for engine in engines)
    for (keys, _), (padded, _) in zip(plain, replayed, strict=True):
        assert len(padded) == len(keys) + 1
        torch.testing.assert_close(padded[:-1], keys, equal_nan=True, rtol=1e-9, atol=1e-9)
        assert not padded[-1].isnan().all()


def test_a_key_without_the_context_gives_wrong_tokens(model_dir):
    """What holds the tests above: they see a graph that is replayed for contexts it was not
    captured for."""
    expected = serve(engine_of(model_dir, values(graphs=False)), LENS, 20)
    engine = engine_of(model_dir, values(), BlindRunner)
    assert serve(engine, LENS, 20) != expected
    assert not all(engine._runner.bit_equal)


@pytest.mark.parametrize("stale", ["_token_ids", "_positions", "_kv_lens", "slots", "block_tables"])
def test_an_input_that_is_not_copied_gives_wrong_tokens(model_dir, stale, monkeypatch):
    expected = serve(engine_of(model_dir, values(graphs=False)), LENS, 20)
    fill = StaticInputs.fill

    def partly(inputs, batch):
        owner = inputs if stale.startswith("_") else inputs._groups[0]
        kept = getattr(owner, stale).clone()
        fill(inputs, batch)
        getattr(owner, stale).copy_(kept)

    monkeypatch.setattr(StaticInputs, "fill", partly)
    assert serve(engine_of(model_dir, values(), GraphRunner, poison=False), LENS, 20) != expected


def test_steps_that_are_no_plain_decode_have_no_key(model_dir):
    engine = engine_of(model_dir, values())
    serve(engine, (9,), 3, prompt_logprobs=1)
    seen = engine._runner.keys
    assert len(seen) == 2 and {key.rows for key in seen} == {1}
    assert engine.trace.totals.padded_rows == 0


@given(st.integers(1, 600), st.integers(1, 600))
def test_every_row_count_has_a_rung_and_little_is_padded(most_rows, rows):
    rungs = ladder(most_rows)
    assert rungs[-1] == most_rows and list(rungs) == sorted(set(rungs))
    added = padding_lens("ladder", [1] * rows, most_rows)
    if rows > most_rows:
        assert not added
        return
    assert rows + len(added) in rungs and set(added) <= {1}
    assert len(added) < (8 if rows <= 256 else 16)
    assert padding_lens("ladder", [1] * (rows - 1) + [2], most_rows) == ()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"kernels__compile": True}, "kernels.compile"),
        ({"kernels__padding": "longest"}, "kernels.padding"),
        (
            {"memory__kv_cache": False, "scheduling__max_num_batched_tokens": 96},
            "memory.kv_cache",
        ),
        ({"kernels__backend": "native"}, "kernels.backend"),
    ],
)
def test_what_graphs_cannot_go_with_is_refused_in_a_sentence(model_dir, more, named):
    with pytest.raises(ConfigError, match=r"kernels\.cuda_graphs=True.*use") as error:
        load_model(model_dir, EngineConfig().with_values(values(**more)), progress=False)
    assert named.split(".")[-1] in str(error.value)


def test_on_a_cpu_the_notes_say_that_nothing_is_captured(model_dir):
    config = EngineConfig().with_values(values(kernels__backend="auto"))
    loaded = load_model(model_dir, config, progress=False)
    assert any("a CPU captures nothing" in note for note in loaded.config.notes)
    assert loaded.config.config.kernels.backend == "torch"


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_captured_graphs_write_the_tokens_of_eager_steps_bit_for_bit(model_dir, overlap):
    """On a GPU: what is captured there is what the tests above rerun."""
    on_gpu = {
        "device": "cuda", "dtype": "float32", "kernels__backend": "triton",
        "memory__kv_bytes": 1 << 20, "scheduling__async_scheduling": overlap,
    }  # fmt: skip
    expected = serve(engine_of(model_dir, values(graphs=False, **on_gpu)), LENS, 20)
    engine = engine_of(model_dir, values(**on_gpu), CheckedRunner)
    assert serve(engine, LENS, 20) == expected
    torch.cuda.synchronize()
    assert engine._runner.bit_equal and all(engine._runner.bit_equal)
    assert engine.trace.totals.compiled_graphs == len(set(engine._runner.keys))
