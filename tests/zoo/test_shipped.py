"""What ships: complete directories, small enough, of one tokenizer, with truthful cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minserve import LLM, EngineConfig, SamplingParams
from minserve.zoo import ZOO, zoo_path
from minserve.zoo.evaluation.card import filled
from minserve.zoo.evaluation.evaluate import score_modules, total
from minserve.zoo.evaluation.opened import open_model
from minserve.zoo.evaluation.pair import PairSettings, judge_pair

MODELS = ("base", "draft")
FILES = {
    "README.md",
    "config.json",
    "evaluation.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curve.json",
}


def report_of(name: str) -> dict:
    return json.loads((zoo_path(name) / "evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODELS)
def test_a_directory_is_complete(name: str) -> None:
    # Beside the base lies what predicts the length of its answers.
    extra = {"length_probe.json"} if name == "base" else set()
    assert {path.name for path in zoo_path(name).iterdir()} == FILES | extra


def test_all_files_together_stay_under_thirty_megabytes() -> None:
    models = [path.parent for path in ZOO.glob("*/config.json")]
    files = [path for model in models for path in model.iterdir()]
    assert {*MODELS, "recall-gqa"} <= {model.name for model in models}
    assert sum(path.stat().st_size for path in files) < 30_000_000


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_draft_and_base_share_their_tokenizer(name: str) -> None:
    base, draft = (zoo_path(model) / name for model in MODELS)
    assert base.read_bytes() == draft.read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_what_the_evaluation_found(name: str) -> None:
    card = (zoo_path(name) / "README.md").read_text(encoding="utf-8")
    assert "<!-- scores: begin -->" in card
    assert filled(card, report_of(name)) == card


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_by_its_name_and_writes(name: str) -> None:
    with LLM(f"zoo/{name}", EngineConfig(dtype="float32"), progress=False) as llm:
        params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
        (output,) = llm.generate("import os\n", params, progress=False)
    assert len(output.token_ids) == 8


@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_found_again(name: str) -> None:
    """On another Python the modules differ by some lines, hence the tolerance."""
    model = open_model(zoo_path(name))
    scores = score_modules(model, ["textwrap", "graphlib"], windows=(256,))
    for module, by_window in scores.items():
        recorded = report_of(name)["modules"][module]["256"]
        assert by_window[256].bits_per_byte == pytest.approx(recorded, abs=0.03)
    assert total(each[256] for each in scores.values()).num_tokens > 3000


@pytest.mark.slow
def test_the_pair_agrees_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = report_of("draft")["pair"]["along_own_text"]["0.8"]
    monkeypatch.setattr("minserve.zoo.corpus.source.HELD_OUT", ("textwrap", "shutil", "difflib"))
    found = judge_pair(zoo_path("base"), zoo_path("draft"), PairSettings(prompts=60))
    sampled = found["along_own_text"]["0.8"]
    assert sampled["tokens"] > 2500
    # Other prompts than all of the evaluation's: agreement within a few hundredths.
    assert sampled["agreement"] == pytest.approx(recorded["agreement"], abs=0.08)
    assert sampled["acceptance"] == pytest.approx(recorded["acceptance"], abs=0.10)


def test_paths_of_models_are_those_the_engine_loads() -> None:
    from minserve.loading import find_model

    assert all(Path(find_model(f"zoo/{name}")) == zoo_path(name) for name in MODELS)
