"""Figures of chapter 46: what they draw is what was counted."""

from __future__ import annotations

import pytest
import torch

from minserve.bench.counts.launches import step_launches
from minserve.bench.counts.splits import Splitting, limits, losing_from
from minserve.bench.workloads.shapes import SHAPES
from minserve.hardware import DEVICES
from minserve.kernels.counts.launches import Launch, Total
from minserve.kernels.counts.least import Bytes, split_attention
from widgets.figures.work.launches import KINDS, by_kind, launch_bars
from widgets.figures.work.online_softmax import OnlineSoftmax, online_softmax
from widgets.figures.work.split_sweep import split_sweep

LLAMA = SHAPES["llama-3.1-8b"].spec()
MIXER = LLAMA.layers[0].mixer


def drawn(figure, name: str) -> float:
    return sum(sum(trace.x) for trace in figure.figure.data if trace.name == name)


def test_every_launch_is_in_one_bar_and_products_are_left_out_of_the_bytes() -> None:
    ways = {way: step_launches(LLAMA, way, [1], [64], "bfloat16") for way in ("torch", "fused")}
    figure = launch_bars(ways)
    assert sum(row["launches"] for row in figure.table) == sum(map(len, ways.values()))
    launches = [t for t in figure.figure.data if t.xaxis == "x"]
    assert sum(sum(trace.x) for trace in launches) == sum(map(len, ways.values()))
    assert {trace.name for trace in figure.figure.data} == {
        look.label for look, _ in KINDS.values()
    }
    bytes_drawn = [t for t in figure.figure.data if t.xaxis == "x2"]
    product = next(t for t in bytes_drawn if t.name == "matrix products")
    assert sum(product.x) == 0
    whole = launch_bars(ways, products=True)
    moved = sum(Total.of(each).moved.total for each in ways.values())
    shown = sum(sum(trace.x) for trace in whole.figure.data if trace.xaxis == "x2")
    assert shown * 1e9 == pytest.approx(moved)
    assert "torch" in figure.takeaway.lower() and figure.alt
    assert "fewer launches and" in figure.takeaway and "fewer bytes with fused" in figure.takeaway
    backwards = launch_bars({"fused": ways["fused"], "torch": ways["torch"]})
    assert "more launches and" in backwards.takeaway
    many = launch_bars({way: 9 * launches for way, launches in ways.items()})
    assert not any("e+" in text for trace in many.figure.data for text in trace.text)


def test_an_operator_nobody_knows_is_everything_else() -> None:
    found = by_kind([Launch("", "add", Bytes(1, 2)), Launch("linear", "linear", Bytes(3, 4), 5)])
    assert found == {"products": Total(1, Bytes(3, 4), 5), "other": Total(1, Bytes(1, 2), 0)}
    with pytest.raises(ValueError, match="at least one way"):
        launch_bars({})


@pytest.mark.parametrize("tile", [1, 4, 7, 30, 64])
def test_an_online_softmax_ends_where_a_whole_one_does(tile: int) -> None:
    generator = torch.Generator().manual_seed(tile)
    scores = torch.randn(30, generator=generator, dtype=torch.float64) * 20
    values = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    states = online_softmax(scores.tolist(), values.tolist(), tile)
    assert len(states) == -(-30 // tile) and states[-1].end == 30
    for state in states:
        seen = scores[: state.end]
        assert state.largest == seen.max().item()
        assert state.total == pytest.approx((seen - seen.max()).exp().sum().item())
        expected = seen.softmax(0) @ values[: state.end]
        assert torch.allclose(torch.tensor(state.normalised, dtype=torch.float64), expected)
    assert states[0].shrink == 0.0
    assert all(0 < state.shrink <= 1 or state.shrink < 1e-6 for state in states[1:])


def test_the_figure_of_a_tile_shows_what_was_seen_and_what_was_not() -> None:
    softmax = OnlineSoftmax([1.0, 2.0, 0.5, 4.0, 3.0], [[1.0, -1.0]] * 5, 2)
    assert len(softmax) == 3
    assert "stays" not in softmax.label(1) and "shrinks to 14 %" in softmax.label(1)
    assert "the maximum stays 4.00" in softmax.label(2)
    named = {trace.name: trace for trace in softmax.figure(1).figure.data if trace.name}
    assert list(named["seen"].x) == [0, 1] and list(named["in this tile"].x) == [2, 3]
    assert list(named["not seen yet"].x) == [4]
    last = softmax.figure()
    assert "not seen yet" not in {trace.name for trace in last.figure.data}
    assert [row["keys seen"] for row in last.table] == [2, 4, 5]
    assert last.table[-1]["farthest from the end"] == 0 and "34" not in last.takeaway
    with pytest.raises(ValueError, match="at least one score"):
        online_softmax([], [], 4)


def test_parts_are_programs_and_bytes_and_pay_only_on_an_idle_gpu() -> None:
    gpu = DEVICES["H100 SXM"]
    alone, crowd = Splitting(MIXER, gpu, 1, 1024), Splitting(MIXER, gpu, 64, 1024)
    costs = alone.costs()
    assert [cost.programs for cost in costs] == [8 * cost.parts for cost in costs]
    for cost in costs:
        moved = split_attention(1, 32, 8, 128, 1024, cost.parts, 2)
        assert cost.bytes == moved.total
    assert alone.cost(16).modelled_s < alone.cost(1).modelled_s / 8
    assert crowd.cost(16).modelled_s > 1.1 * crowd.cost(1).modelled_s
    turn = losing_from(alone, 16)
    assert turn is not None
    before, after = (Splitting(MIXER, gpu, turn - back, 1024) for back in (1, 0))
    assert before.cost(16).modelled_s <= before.cost(1).modelled_s
    assert after.cost(16).modelled_s > after.cost(1).modelled_s
    assert [cost.parts for cost in Splitting(MIXER, gpu, 1, 8).costs()] == [1, 2, 4, 8]
    assert losing_from(alone, 1) is None
    with pytest.raises(ValueError, match="no sourced figure for bandwidth or processors"):
        limits(DEVICES["A10G"])


def test_the_sweep_draws_both_kinds_of_bytes_and_a_dashed_line() -> None:
    splitting = Splitting(MIXER, DEVICES["H100 SXM"], 1, 1024)
    figure = split_sweep(splitting, splitting.costs())
    bars = [trace for trace in figure.figure.data if trace.type == "bar"]
    line = next(trace for trace in figure.figure.data if trace.type == "scatter")
    assert len(bars) == 2 and len(set(bars[0].y)) == 1 and list(bars[1].y) == sorted(bars[1].y)
    assert line.line.dash == "dash" and len(line.y) == len(figure.table) == 7
    assert "the engine takes 8, because no part may have fewer than 128 keys." in figure.takeaway
    assert "H100" in figure.caption
    many = Splitting(MIXER, DEVICES["H100 SXM"], 64, 1024)
    takeaway = split_sweep(many, many.costs()).takeaway
    assert "1 would be fastest" in takeaway
    assert "takes 2, the fewest within 12.5 % of its own best estimate" in takeaway
    with pytest.raises(ValueError, match="at least one"):
        split_sweep(splitting, [])
