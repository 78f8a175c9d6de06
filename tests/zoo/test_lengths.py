"""The length probe: a regression that finds what is there, and says when nothing is."""

from __future__ import annotations

import json
import math

import pytest
import torch

from minserve import LLM
from minserve.build import build_engine
from minserve.config import ConfigError, EngineConfig
from minserve.engine.parts import EngineParts
from minserve.loading import find_model, load_model
from minserve.request import Request, SamplingParams
from minserve.zoo.lengths import FILE, LastTokenStream, LengthMap, LengthProbe
from minserve.zoo.lengths_train import Written, evaluate, fit, quality, spread

CONFIG = EngineConfig().with_values(
    {"dtype": "float32", "device": "cpu", "scheduling.max_model_len": 128}
)


@pytest.fixture(scope="module")
def loaded():
    return load_model("zoo/base", CONFIG, progress=False)


def request(tokens, max_tokens=100):
    made = Request("r", tokens, SamplingParams(max_tokens=max_tokens), 0.0, 0)
    made.max_len = len(tokens) + max_tokens
    return made


def test_ridge_finds_a_linear_law_of_log_lengths_and_little_ridge_changes_little():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    truth = torch.tensor([0.5, 0.0, -0.3, 0.0, 0.2], dtype=torch.float64)
    lengths = torch.expm1(3.0 + x @ truth)
    mean, scale, weights, bias = fit(x, lengths, 1e-6)
    assert ((x - mean) / scale @ weights + bias) == pytest.approx((3.0 + x @ truth).tolist())
    _, _, shrunk, _ = fit(x, lengths, 1e6)
    assert shrunk.abs().max() < 0.01


def test_quality_of_the_truth_of_guessing_and_of_the_opposite():
    actual = torch.log1p(torch.tensor([3.0, 9.0, 20.0, 20.0, 150.0], dtype=torch.float64))
    assert quality(actual, actual) == {"log_error_std": 0.0, "r2": 1.0, "pairs_in_order": 1.0}
    flat = quality(torch.full_like(actual, float(actual.mean())), actual)
    assert flat["pairs_in_order"] == 0.5 and flat["r2"] == pytest.approx(0.0)
    assert quality(-actual, actual)["pairs_in_order"] == 0.0


def test_the_stream_is_the_same_whatever_was_probed_before(loaded):
    stream = LastTokenStream(loaded, 4)
    first = stream.features([5, 6, 7, 8])
    stream.features(list(range(2, 90)))
    assert torch.equal(first, stream.features([5, 6, 7, 8]))
    assert first.shape == (loaded.config.model.hidden_size + 1,)
    assert float(first[-1]) == pytest.approx(math.log(4))
    assert not torch.allclose(first, stream.features([5, 6, 7, 9]))


def test_the_shipped_probe_predicts_within_bounds_counts_its_work_and_orders_a_queue(loaded):
    probe = LengthProbe(loaded)
    guesses = [probe.predict(request([3 + n] * (5 + n))) for n in range(20)]
    assert all(1 <= guess <= 100 for guess in guesses) and len(set(guesses)) > 10
    assert probe.forward_tokens == sum(5 + n for n in range(20))
    assert probe.predict(request([3] * 5, max_tokens=2)) <= 2
    config = CONFIG.with_values({"scheduling.order": "sjf", "scheduling.max_num_seqs": 1})
    queue = load_model("zoo/base", config, progress=False)
    engine = build_engine(queue, parts=EngineParts(predictor=LengthProbe(queue)))
    requests = [
        engine.add(f"{n}", [3 + n] * (5 + n), SamplingParams(max_tokens=2))[0] for n in range(6)
    ]
    entries = [engine._scheduler.waiting.entry(request) for request in requests]
    while engine.has_work:
        engine.step()
    order = [int(record.request_id) for record in engine.trace.requests]
    assert order == sorted(order, key=lambda n: entries[n].predicted_tokens)


def test_the_front_door_takes_a_probe_and_an_order_that_asks_none_refuses_it():
    config = CONFIG.with_values({"scheduling.order": "sjf", "scheduling.max_num_seqs": 1})
    params = SamplingParams(max_tokens=2)
    with LLM("zoo/base", config, predictor=LengthProbe, progress=False) as llm:
        probe = LengthProbe(load_model("zoo/base", config, progress=False))
        prompts = [[3 + n] * (5 + n) for n in range(6)]
        llm.generate(prompts, [params] * 6, progress=False)
        order = [record.metrics.num_prompt_tokens for record in llm.trace.requests]
        guesses = {len(prompt): probe.predict(request(prompt, max_tokens=2)) for prompt in prompts}
    assert order == sorted(order, key=lambda length: guesses[length])
    with pytest.raises(ConfigError, match="asks no predictor"):
        LLM("zoo/base", CONFIG, predictor=LengthProbe, progress=False)


def test_the_card_says_how_good_it_is_in_figures_that_are_its_own():
    fitted = LengthMap.from_json((find_model("zoo/base") / FILE).read_text())
    assert LengthMap.from_json(fitted.to_json()) == fitted
    held_out = fitted.card["held_out"]
    assert held_out["prompts"] == fitted.card["held_out_lengths"]["prompts"] >= 300
    assert held_out["probe"]["r2"] < 1 and set(held_out) >= {"probe", "one number for all"}
    with pytest.raises(ValueError, match="not a length map"):
        LengthMap.from_json(json.dumps({"layer": 3, "mean": [], "scale": [], "weights": []}))


def test_evaluation_compares_with_one_number_and_with_the_prompts_length(loaded):
    fitted = LengthMap.from_json((find_model("zoo/base") / FILE).read_text())
    stream = LastTokenStream(loaded, fitted.layer)
    written = [Written((5,) * n, 3 * n, ended=n < 30) for n in range(5, 40)]
    features = torch.stack([stream.features(w.prompt_token_ids) for w in written])
    found = evaluate(fitted, features, written)
    assert found["prompt length"]["pairs_in_order"] == 1.0
    assert found["one number for all"]["pairs_in_order"] == 0.5
    assert spread(written)["share_cut_at_max_tokens"] == pytest.approx(10 / 35)


def test_a_probe_of_other_weights_is_refused(loaded, tmp_path):
    from dataclasses import replace

    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    (tmp_path / FILE).write_text((find_model("zoo/base") / FILE).read_text())
    with pytest.raises(ValueError, match="was fitted to other weights"):
        LengthProbe(replace(loaded, path=tmp_path))


def test_a_model_without_a_probe_says_what_to_do(loaded, tmp_path):
    from dataclasses import replace

    with pytest.raises(FileNotFoundError, match="has no length_probe"):
        LengthProbe(replace(loaded, path=tmp_path))
