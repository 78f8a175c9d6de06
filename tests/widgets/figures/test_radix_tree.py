"""The growing tree: what is drawn is what the index holds, and nothing jumps while it grows."""

from __future__ import annotations

import pytest
from engine.fakes import make_engine

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.config import EngineConfig
from widgets import theme
from widgets.figures import RadixTree, radix_tree
from widgets.figures.memory.tree_growth import TreeGrowth
from widgets.replays.frames import frames_of
from widgets.replays.replay import Replay
from widgets.replays.tree_view import TreeView

PAGE = 4
SYSTEM = list(range(1, 13))
"""Three pages that all share."""
FILES = [list(range(20, 28)), list(range(40, 52))]


def prompt(number: int) -> list[int]:
    return SYSTEM + FILES[number % 2] + [60 + number] * 6


def grown(kind: str = "radix", pages: int = 40, count: int = 8, places: int = 2, every: int = 1):
    config = EngineConfig().with_values(
        {
            "memory.block_size": PAGE,
            "memory.prefix_cache": kind,
            "memory.watermark": 0.0,
            "scheduling.max_num_seqs": places,
            "trace.per_request": True,
        }
    )
    engine = make_engine(config, num_blocks=pages)[0]
    growth = TreeGrowth(engine, every)
    prompts = {f"{n}": prompt(n) for n in range(count)}
    lengths = [fixed_length(2 + n % 3) for n in range(count)]
    drive(engine, at_once(list(prompts.values()), lengths), on_step=growth)
    return growth, prompts


def columns(tree: RadixTree, index: int):
    """Tokens drawn by kind at a moment."""
    return [sum(x or 0 for x in drawn["x"]) for drawn in tree.traces(index)[1:4]]


@pytest.mark.parametrize("kind", ["radix", "hash"])
@pytest.mark.parametrize("pages", [40, 16])
def test_every_moment_draws_exactly_the_pages_of_the_index(kind: str, pages: int) -> None:
    growth, prompts = grown(kind, pages)
    tree = RadixTree(growth, None, prompts)
    assert len(tree.snapshots) > 4 and not tree.snapshots[0].nodes
    seen: set[tuple[int, ...]] = set()
    for index, shot in enumerate(tree.snapshots):
        owned, cached, evicted = columns(tree, index)
        assert owned + cached == shot.num_pages * PAGE
        assert owned == sum(node.num_owned for node in shot.nodes) * PAGE
        paths: set[tuple[int, ...]] = set()
        ends: list[tuple[int, ...]] = []
        for node in shot.nodes:
            path = () if node.parent is None else ends[node.parent]
            for page in node.pages:
                path = (*path, *page)
                paths.add(path)
            ends.append(path)
        seen |= paths
        assert evicted == (len(seen) - len(paths)) * PAGE
    assert any(columns(tree, index)[0] for index in range(len(tree.snapshots))), "none was held"
    assert (columns(tree, -1)[2] > 0) == (pages == 16)
    index = growth.engine.memory.prefix.index
    assert sum(1 for _ in index.blocks()) == tree.snapshots[-1].num_pages


def test_bars_stay_where_they_are_while_the_tree_grows() -> None:
    growth, prompts = grown(pages=16)
    tree = RadixTree(growth, None, prompts)
    shapes = []
    for index in range(len(tree.snapshots)):
        bars = tree.bars(index)
        shapes.append([(bar.start, bar.run.row) for bar in bars])
        # Owned pages come before cached ones, and both before evicted ones, as LRU leaves them.
        assert all(bar.owned % PAGE == bar.cached % PAGE == bar.evicted % PAGE == 0 for bar in bars)
    assert all(shape == shapes[0] for shape in shapes)
    rows = {row for _, row in shapes[0]}
    assert rows == set(range(len(rows)))
    # Bars of one row never overlap.
    last = {}
    for bar in sorted(tree.bars(-1), key=lambda b: (b.run.row, b.start)):
        assert last.get(bar.run.row, 0) <= bar.start
        last[bar.run.row] = bar.start + bar.held + bar.evicted


def test_the_shared_prefix_is_counted_split_and_told_without_colour() -> None:
    growth, prompts = grown()
    tree = RadixTree(growth, None, prompts)
    first = tree.bars(len(tree.snapshots) - 1)[0]
    assert (first.start, first.readers, first.held) == (0, 8, 12)
    drawn = tree.figure()
    assert "8 requests" in drawn.alt and "12 tokens from 0" in drawn.alt
    assert drawn.table[0]["requests"] == 8
    total = growth.engine.trace.totals.hit_tokens
    assert f"{total:,} of {sum(map(len, prompts.values())):,} prompt tokens" in drawn.takeaway
    shapes = {trace.marker.pattern.shape for trace in drawn.figure.data if trace.type == "bar"}
    assert len(shapes) == 3, "told apart by pattern, not only by colour"
    # A node ends where prompts part: behind the system prompt, once the second file has come.
    *_, ends = tree.traces(len(tree.snapshots) - 1)
    assert 12 in ends["x"]
    assert "8 requests" in tree.heading(len(tree.snapshots) - 1)
    assert radix_tree(growth, None, prompts, 0).takeaway.startswith("The tree is empty")


def test_a_snapshot_is_kept_every_so_many_requests_and_at_the_end() -> None:
    growth, _ = grown(count=7, places=1, every=3)
    assert [len(shot.finished) for shot in growth.snapshots] == [0, 3, 6, 7]
    with pytest.raises(ValueError, match="at least 1"):
        TreeGrowth(growth.engine, 0)
    with pytest.raises(ValueError, match="no prefix index"):
        TreeGrowth(make_engine()[0])


def test_replay_steps_through_the_tree() -> None:
    growth, prompts = grown(pages=16)
    tree = RadixTree(growth, None, prompts)
    view = TreeView(tree)
    replay = Replay(growth.run, views=[view])
    assert view.index(replay.moment) == 0
    shown = []
    for moment in (replay.moments[n] for n in range(len(replay.moments))):
        view.move(moment)
        shown.append(view.index(moment))
        live = view.live.figure
        assert live.layout.title.text == tree.heading(shown[-1])
        assert [x or 0 for x in live.data[1].x] == [x or 0 for x in tree.traces(shown[-1])[1]["x"]]
    assert shown == sorted(shown) and shown[-1] == len(tree.snapshots) - 1
    assert set(shown) == set(range(len(tree.snapshots)))
    replay.close()


def test_without_a_kernel_its_frames_show_what_the_live_view_shows() -> None:
    growth, prompts = grown(pages=16)
    view = TreeView(RadixTree(growth, None, prompts))
    replay = Replay(growth.run, views=[view])
    moments = [replay.moments[n] for n in range(len(replay.moments))]
    figure, frames = frames_of(view, moments, [moment.at_s for moment in moments])
    assert len(figure.data) == len(frames[0]["traces"]) and len(frames) == len(moments)
    for moment, frame in zip(moments, frames, strict=True):
        view.move(moment)
        live = view.live.figure
        assert frame["layout"]["title"]["text"] == live.layout.title.text
        for drawn, trace in zip(frame["data"], live.data, strict=True):
            assert list(drawn["x"]) == list(trace.x)
    replay.close()


def test_headless_it_is_words(monkeypatch: pytest.MonkeyPatch) -> None:
    growth, prompts = grown()
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    replay = Replay(growth.run, views=[TreeView(RadixTree(growth, None, prompts))])
    assert "prefix tree" in replay.text
    assert theme.headless()
