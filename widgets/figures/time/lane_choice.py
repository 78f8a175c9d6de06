"""Which lanes of a timeline are drawn when there are more than it can carry: the same requests on
every side, and on each side the one that took the longest and the one that took the shortest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from widgets import theme
from widgets.figures import sides as given
from widgets.figures.sampling import sampled
from widgets.figures.sides import Side
from widgets.figures.time.lanes import LaneKey, Span, lanes, merged, spans
from widgets.figures.time.token_gaps import Line, frozen


def chosen(
    shown: Sequence[Side],
    max_lanes: int,
    window_s: tuple[float, float] | None = None,
    usual_s: float = 0.0,
) -> tuple[list[list[Line]], list[str]]:
    """Each side's lanes with their spans, within the limits of marks, and notes on what was left
    out. Decode steps far longer than `usual_s` are "frozen"; none for 0."""
    everyone = [_lines(side, window_s, usual_s) for side in shown]
    limit, fewest = max_lanes, 2 * len(shown) + 3
    while True:
        kept = _sample(everyone, limit)
        drawn = [[line for line in every if line[0].key in kept] for every in everyone]
        notes = [
            given.left_out(
                shown, [(len(d), len(e)) for d, e in zip(drawn, everyone, strict=True)], "requests"
            )
        ]
        if max(map(_most, drawn)) > theme.MAX_MARKS:
            drawn = [[(lane, merged(found)) for lane, found in lines] for lines in drawn]
            notes.append("Steps in which a request did the same are drawn as one mark.")
        if max(map(_most, drawn)) <= theme.MAX_MARKS or limit <= fewest:
            return drawn, notes
        limit = max(fewest, limit * 3 // 4)


def _lines(side: Side, window_s: tuple[float, float] | None, usual_s: float) -> list[Line]:
    every = [(lane, frozen(spans(lane, side.run), usual_s)) for lane in lanes(side.run)]
    if window_s is None:
        return every
    begin, end = (side.origin_s + seconds for seconds in window_s)
    inside = [
        (lane, [span for span in found if span.start_s < end and span.end_s > begin])
        for lane, found in every
    ]
    return [line for line in inside if line[1]]


def _sample(everyone: Sequence[Sequence[Line]], limit: int) -> set[LaneKey]:
    keys = list(dict.fromkeys(lane.key for every in everyone for lane, _ in every))
    took = [{lane.key: _seconds(found) for lane, found in every} for every in everyone]

    def on(side: dict[LaneKey, float]) -> Callable[[LaneKey], float]:
        # A request that is not on this side is neither its longest nor its shortest.
        typical = sorted(side.values())[len(side) // 2] if side else 0.0
        return lambda key: side.get(key, typical)

    return set(sampled(keys, limit, *map(on, took)))


def _seconds(found: Sequence[Span]) -> float:
    return found[-1].end_s - found[0].start_s if found else 0.0


def _most(lines: Sequence[Line]) -> int:
    counts = Counter(span.state for _, found in lines for span in found)
    return max(counts.values(), default=0)
