"""Every figure over real runs of the model that ships: once without, once with a KV cache."""

from __future__ import annotations

from pathlib import Path

import pytest

import minserve
from minserve import LLM, EngineConfig, SamplingParams
from minserve.request import Output
from minserve.tokenizer import Tokenizer
from minserve.trace import RunTrace
from tests.widgets.figures.runs import DETAIL
from widgets import figures
from widgets.replays.replay import Replay, replay_html
from widgets.tokenview import token_view

WEIGHTS = Path(minserve.__file__).parent / "zoo" / "base" / "model.safetensors"

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the zoo's weights are not here")

TOKENS = 12


@pytest.fixture(scope="module")
def pair() -> tuple[dict[str, RunTrace], Output, Tokenizer]:
    traces, outputs, tokenizer = {}, [], None
    for name, keep in (("off", False), ("on", True)):
        values = {
            **DETAIL,
            "dtype": "float32",
            "device": "cpu",
            "kernels.backend": "torch",
            "kernels.num_threads": 1,
            "memory.kv_cache": keep,
            "memory.kv_bytes": 4 << 20,
            "scheduling.max_model_len": 64,
        }
        with LLM("zoo/base", EngineConfig().with_values(values), progress=False) as llm:
            params = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
            outputs += llm.generate(["def fibonacci(n):\n"], params, progress=False)
            traces[name], tokenizer = llm.trace, llm.tokenizer
    assert outputs[0].samples[0].token_ids == outputs[1].samples[0].token_ids
    assert tokenizer is not None
    return traces, outputs[1], tokenizer


@pytest.mark.parametrize(
    "name",
    [
        "timeline", "slots", "kv_bytes", "latency", "throughput", "recompute_triangle",
        "typewriters", "stage_shares",
    ],
)  # fmt: skip
def test_real_runs_are_drawn_side_by_side(name: str, pair) -> None:
    drawn = getattr(figures, name)(pair[0])
    assert drawn.caption.startswith("Measured on")
    assert "off: memory.kv_cache=False" in drawn.caption
    assert {row["side"] for row in drawn.table} == {"off", "on"}


def test_the_triangle_counts_what_a_cache_avoids(pair) -> None:
    traces, output, _ = pair
    length = len(output.prompt_token_ids)
    drawn = figures.recompute_triangle(traces)
    again = sum(row["computed again"] for row in drawn.table if row["side"] == "off")
    assert again == sum(length + step for step in range(TOKENS - 1))
    assert not any(row["computed again"] for row in drawn.table if row["side"] == "on")
    assert "of keys and values kept" in drawn.takeaway


def test_the_text_is_the_models_and_every_page_is_mapped(pair) -> None:
    traces, output, tokenizer = pair
    # A drawn end-of-text is written out: the reader should see that it is there.
    whole = tokenizer.decode(output.samples[0].token_ids, skip_special_tokens=False)
    view = token_view(traces["on"], tokenizer, output)
    new = [mark.text for mark in view.marks if mark.kind == "decoded"]
    assert "".join(new) == whole
    assert view.counts() == {"prefilled": len(output.prompt_token_ids), "decoded": TOKENS}
    drawn = figures.page_map(traces["on"], -1)
    owned = sum(row["owner"] != "free" for row in drawn.table)
    assert owned == traces["on"].steps[-1].blocks_used
    typed = figures.typed(traces["on"], tokenizer)[""]
    assert "".join(delivery.text for delivery in typed) == whole


def test_replay_shows_the_race(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, output, tokenizer = pair
    replay = Replay(traces, ("typewriters", "timeline", "tokens"), tokenizer=tokenizer,
                    prompts=[output])  # fmt: skip
    replay.controls  # noqa: B018 (as displaying it does)
    replay.seek(len(replay.moments))
    assert replay.flush()
    assert replay.views[0].widget.value.count(f"{TOKENS} of {TOKENS} tokens, finished") == 2
    replay.close()
    page = replay_html(traces, "typewriters", tokenizer=tokenizer, include_plotlyjs=False)
    assert f"{TOKENS}\\u00a0of" in page or f"{TOKENS}\u00a0of" in page
