"""The benchmark of grammars draws the same number of tokens on every side."""

from __future__ import annotations

import json

import pytest

from minserve.__main__ import main
from minserve.bench import structured
from minserve.llm import LLM


def test_every_side_draws_as_many_tokens_in_every_round_and_forms_are_kept(monkeypatch):
    drawn: list[tuple[str, int]] = []
    real = LLM.generate

    def watched(self, prompts, params, **how):
        outputs = real(self, prompts, params, **how)
        form = params.structured_outputs
        drawn.extend((form.kind if form else "free", len(each.token_ids)) for each in outputs)
        if form is not None and form.kind == "json":
            assert outputs[0].text.lstrip().startswith("[")
            with pytest.raises(json.JSONDecodeError):
                json.loads(outputs[0].text)  # it goes on for ever
        return outputs

    monkeypatch.setattr(LLM, "generate", watched)
    cost = structured.grammar_cost("zoo/draft", batch_size=2, num_tokens=5, rounds=2)
    assert sorted(drawn) == sorted([(kind, 5) for kind in ("free", "regex", "json")] * 6)
    assert cost.seconds.keys() == {"free", "regex", "schema"}
    assert all(len(each) == 2 and min(each) > 0 for each in cost.seconds.values())
    assert cost.extra("free").values == (0.0, 0.0)


def test_the_command_says_what_a_step_takes_longer(capsys):
    arguments = ["--model", "zoo/draft", "--num-tokens", "3", "--batch-sizes", "1", "2"]
    assert main(["bench", "structured", *arguments, "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "batch of 1, 3 tokens" in printed and "batch of 2" in printed
    assert printed.count("us (") == 4
