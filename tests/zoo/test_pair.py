"""A pair is judged on held-out prompts only, and its card says what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minserve.zoo import zoo_path
from minserve.zoo.corpus.source import held_out_path
from minserve.zoo.evaluation import evaluate, pair
from minserve.zoo.evaluation.card import filled
from minserve.zoo.evaluation.opened import open_model
from minserve.zoo.evaluation.pair import PairSettings, held_out_prompts, judge_pair
from minserve.zoo.training.export import export
from minserve.zoo.training.net import Net, NetConfig

SMALL = PairSettings(prompts=20, prompt_tokens=24, new_tokens=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    shape = NetConfig(
        hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1, intermediate_size=32
    )
    net = Net(shape)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter).mul_(0.3).bfloat16())
    folder = tmp_path_factory.mktemp("pair") / "tiny"
    export(net, zoo_path("base"), folder, [])
    return folder


def test_a_model_is_its_own_perfect_draft(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minserve.zoo.corpus.source.HELD_OUT", ("queue", "bisect"))
    report = judge_pair(tiny, tiny, SMALL)
    assert report["along_held_out_text"] == {"0.0": 1.0, "0.8": 1.0}
    for found in report["along_own_text"].values():
        assert found["agreement"] == found["acceptance"] == 1.0
        assert found["tokens"] > 0
        assert 20 <= found["continuations"] + found["loops_excluded"] <= 24


def test_loops_are_excluded_and_counted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minserve.zoo.corpus.source.HELD_OUT", ("queue",))

    def half_loops(_: Path, prompts: list[list[int]], *__: object) -> list[list[int]]:
        return [[7] * 8 if i % 2 else list(range(9, 17)) for i in range(len(prompts))]

    monkeypatch.setattr(pair, "write_continuations", half_loops)
    for found in judge_pair(tiny, tiny, SMALL)["along_own_text"].values():
        assert abs(found["loops_excluded"] - found["continuations"]) <= 1
        assert found["tokens"] == 8 * found["continuations"]


def test_prompts_come_from_every_held_out_module_and_begin_with_bos(tiny: Path) -> None:
    model = open_model(tiny)
    settings = PairSettings(prompts=300, prompt_tokens=32)
    prompts = held_out_prompts(model, settings)
    assert 300 <= len(prompts) <= 330
    assert all(len(prompt) == 32 and prompt[0] == 0 for prompt in prompts)
    texts = [model.tokenizer.decode(prompt[1:]) for prompt in prompts]
    for module in ("heapq", "string", "sched"):
        source = held_out_path(module).read_text(encoding="utf-8")
        assert any(text in source for text in texts)


def test_a_draft_with_another_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="tokenizer"):
        judge_pair(tiny, tmp_path, SMALL)


def test_evaluate_prints_a_pair_and_keeps_it_beside_the_model(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minserve.zoo.corpus.source.HELD_OUT", ("queue", "bisect"))
    monkeypatch.setattr("minserve.zoo.corpus.source.HEADLINE", ("queue",))
    monkeypatch.setattr(pair, "PairSettings", lambda: SMALL)
    (tiny / "README.md").write_text(
        "A\n<!-- pair: begin -->\nold\n<!-- pair: end -->\n"
        "B\n<!-- cost: begin --><!-- cost: end -->\n"
    )
    assert (
        evaluate.main(
            [str(tiny), "--base", str(tiny), "--signatures", "3", "--cost", "1", "--save"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "accepted/proposed 1.000" in printed and "Python 3." in printed
    report = json.loads((tiny / "evaluation.json").read_text())
    assert report["signatures"] == 3
    card = (tiny / "README.md").read_text()
    assert card.startswith("A\n") and "\nB\n" in card and "old" not in card
    assert "| 1.000 | 1.000 |" in card and "times as much" in card and "| 1 | " in card
    assert filled(card, report) == card
