"""The benchmark of HTTP's cost: every side does all of the work, on prompts that come once."""

from __future__ import annotations

import pytest

from minserve.__main__ import main
from minserve.bench.http import overhead
from minserve.bench.http.client import PlayError
from minserve.llm import LLM


@pytest.mark.slow
def test_every_side_makes_every_token_from_prompts_of_its_own(monkeypatch, capsys):
    prompts, streams = [], []
    generate, through = LLM.generate, overhead.play

    def watched_generate(self, given, *args, **how):
        prompts.extend(tuple(each) for each in given)
        return generate(self, given, *args, **how)

    def watched_play(url, sent, **how):
        prompts.extend(each.prompt_token_ids for each in sent.requests)
        done = through(url, sent, **how)
        # A whole answer comes in one piece, a stream in several.
        streams.append(max(len(each.deliveries_s) for each in done.records) > 1)
        assert [each.num_output_tokens for each in done.records] == [6] * 5
        return done

    monkeypatch.setattr(LLM, "generate", watched_generate)
    monkeypatch.setattr(overhead, "play", watched_play)
    arguments = ["--model", "zoo/draft", "--dtype", "float32", "--num-prompts", "5",
                 "--input-len", "7", "--output-len", "6", "--repeats", "2"]  # fmt: skip
    assert main(["bench", "http", *arguments]) == 0
    assert len(prompts) == len(set(prompts)) == 3 * 3 * 5
    assert streams.count(True) == streams.count(False) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["offline", "http", "streamed"]
    assert all("of offline; client" in line for line in lines[2:])


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why():
    with pytest.raises(PlayError, match="zoo/nothing"):
        overhead.http_cost("zoo/nothing", rounds=1)
