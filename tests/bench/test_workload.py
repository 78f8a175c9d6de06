"""The race's workload is everybody's, and stays so."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from minserve.bench.workloads.shapes import SHAPES, write_checkpoint
from minserve.bench.workloads.workload import race_workload, single_stream


def test_race_workload_is_drawn_as_the_peers_scripts_draw_it() -> None:
    draw = random.Random(0)
    expected = [
        ([draw.randint(2, 3999) for _ in range(draw.randint(32, 256))], draw.randint(32, 128))
        for _ in range(64)
    ]
    workload = race_workload(vocab_size=4096)
    assert [(list(i.prompt_token_ids), i.max_tokens) for i in workload.items] == expected
    assert (workload.num_input_tokens, workload.num_output_tokens) == (9629, 5426)
    assert race_workload(151_936).items == workload.items
    assert race_workload(4096, seed=1).items != workload.items


def test_prompts_stay_inside_a_small_vocabulary() -> None:
    workload = race_workload(vocab_size=10, num_requests=5)
    ids = {token for item in workload.items for token in item.prompt_token_ids}
    assert ids <= set(range(2, 10))
    assert workload.first(2).items == workload.items[:2]
    assert workload.longest == max(len(i.prompt_token_ids) + i.max_tokens for i in workload.items)


def test_lengths_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 tokens"):
        race_workload(3)
    with pytest.raises(ValueError, match="at least 2"):
        single_stream(100, 5, 1)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("trial", 6.75), ("qwen3-0.6b", 596.05), ("llama-3.1-8b", 8030.26), ("llama-2-7b", 6738.42)],
)
def test_named_shapes_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    assert SHAPES[name].spec().num_parameters() / 1e6 == pytest.approx(millions, abs=0.01)


def test_random_checkpoint_is_the_same_model_in_every_number_format(
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file

    from minserve.models import load_spec

    state = torch.random.get_rng_state()
    first = write_checkpoint(SHAPES["trial"], tmp_path / "a", seed=3)
    again = write_checkpoint(SHAPES["trial"], tmp_path / "b", seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    weights = load_file(first / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == 6_754_560
    for name, weight in load_file(again / "model.safetensors").items():
        assert torch.equal(weight, weights[name])
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(weight, weight.to(dtype).float())
    loaded, wanted = load_spec(first), SHAPES["trial"].spec()
    assert (loaded.layers, loaded.vocab_size, loaded.tie_embeddings) == (
        wanted.layers, wanted.vocab_size, wanted.tie_embeddings,
    )  # fmt: skip
