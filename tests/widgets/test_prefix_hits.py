"""With prefix hits, tokens are coloured by where they came from, and pages by who has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine.fakes import make_engine, run

from minserve.bench.workloads.traffic import fixed_length
from minserve.config import EngineConfig
from minserve.trace import RunTrace
from widgets.figures import page_map
from widgets.figures import sides as given
from widgets.figures.memory.page_table import count_pages, pages
from widgets.replays.moments import Moments
from widgets.replays.views import PagesView, Stage
from widgets.tokenview import TokenView, kinds_at, token_marks

PAGE = 4
PROMPT = list(range(1, 19))
"""Four pages and a half."""


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)


def traced(kind: str = "radix", together: bool = False) -> RunTrace:
    """A prompt, then the same with another end; `together`: the second joins the first."""
    config = EngineConfig().with_values(
        {
            "memory.block_size": PAGE,
            "memory.prefix_cache": kind,
            "memory.watermark": 0.0,
            "trace.per_request": True,
            "trace.pages": True,
        }
    )
    engine = make_engine(config, num_blocks=24)[0]
    engine.add("first", PROMPT, fixed_length(8))
    engine.step()
    if not together:
        run(engine)
    engine.add("second", [*PROMPT[:17], 90, 91], fixed_length(4))
    run(engine)
    values = engine.config.config.to_dict()
    engine.trace.header = replace(engine.trace.header, config=values)
    return engine.trace


@pytest.mark.parametrize(("kind", "found"), [("off", 0), ("hash", 16), ("radix", 17)])
@pytest.mark.parametrize("together", [False, True])
def test_tokens_found_in_the_cache_are_those_the_engine_counted(kind, found, together) -> None:
    trace = traced(kind, together)
    marks = token_marks(trace, None, [*PROMPT[:17], 90, 91], request="second")
    if together and kind == "radix":
        found = 16  # the first one's last page is not full, so not in the tree yet
    record = next(one for one in trace.requests if one.request_id == "second")
    assert record.metrics.num_cached_tokens == found
    assert [mark.kind for mark in marks[:19]] == ["cached"] * found + ["prefilled"] * (19 - found)
    assert TokenView(marks).counts().get("cached", 0) == found
    # They stand there from the step that found them, not before.
    if found:
        step = marks[0].step
        before = [kind for _, kind in kinds_at(marks, step - 1)]
        assert before[:19] == ["pending"] * 19


@pytest.mark.parametrize("together", [False, True])
def test_pages_are_owned_shared_cached_or_free_as_the_pool_says(together) -> None:
    trace = traced(together=together).snapshot()
    shared = 0
    for index, step in enumerate(trace.steps):
        grid = pages(trace, index, PAGE)
        words = count_pages(grid, PAGE)
        assert words.owned == step.blocks_used
        assert set(step.cached_block_ids) >= {page.number for page in grid if page.cached}
        assert len(step.cached_block_ids) == step.blocks.cached_blocks
        assert words.owned + words.cached + words.free == words.total == 24
        assert not any(page.cached and page.owners for page in grid)
        shared = max(shared, words.shared)
    assert shared == (4 if together else 0)
    # Between the two, the first one's full pages are cached, and the map says so.
    last = len(trace.steps) - 1
    assert trace.steps[last].blocks.cached_blocks > 0
    if not together:
        middle = next(i for i, s in enumerate(trace.steps) if i and s.num_prefill_tokens)
        drawn = page_map(trace, middle)
        rows = [row["owner"] for row in drawn.table]
        assert rows.count("cached") == count_pages(pages(trace, middle, PAGE), PAGE).cached > 0
        assert "cached for a prefix hit" in drawn.takeaway and "cached" in drawn.alt
        names = {entry.name for entry in drawn.figure.data if entry.name}
        assert any(name.startswith("cached") for name in names)


def test_replay_shows_cached_pages_at_the_moment_they_are() -> None:
    trace = traced()
    view = PagesView(Stage(given.sides(trace)))
    moments = Moments(given.sides(trace))
    told = set()
    for moment in (moments[n] for n in range(len(moments))):
        texts = [text for part in view.traces(moment) for text in part["customdata"]]
        told |= {text.split(": ")[1].split(",")[0] for text in texts}
    assert {"cached", "free"} <= told


def test_a_trace_written_and_read_back_still_knows_its_cached_pages() -> None:
    trace = traced()
    again = RunTrace.from_json(trace.to_json())
    assert [s.cached_block_ids for s in again.steps] == [s.cached_block_ids for s in trace.steps]
    assert any(step.cached_block_ids for step in again.steps)
