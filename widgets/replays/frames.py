"""Replay for readers without a kernel: one HTML page of plotly frames, with a slider.

Frames are spread evenly over the run's time, so that playing keeps the stated speed. Nothing plays
by itself. Draws with the same views as the live Replay.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from minserve.request import Output
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.memory.page_grid import MAX_NAMED
from widgets.figures.render import figure_html, words_html
from widgets.figures.sides import Runs
from widgets.pieces import Texts
from widgets.replays.moments import Moment, Moments, speed_words
from widgets.replays.tree_view import TreeView
from widgets.replays.views import (
    PagesView,
    Stage,
    TimelineView,
    TokensView,
    TypewritersView,
    make_view,
)
from widgets.tokenview import kinds_at

MAX_FRAMES = 120
_MAX_CELLS = 20_000
"""Most pages times frames: a frame repeats every page, and the page must stay small."""
_LINES, _LINE_PX = 18, 19


def replay_html(
    runs: Runs,
    view: str = "timeline",
    *,
    speed: float = 0.1,
    tokenizer: Texts | None = None,
    prompts: Sequence[Output] | Mapping[str, Sequence[int]] = (),
    request: str | None = None,
    include_plotlyjs: bool | str = "cdn",
    full: bool = False,
) -> str:
    """One view of a run ("timeline", "pages", "tokens", "typewriters") as HTML with a slider.

    Arguments are Replay's and `LabFigure.html`'s. Raises ValueError for a view without frames.
    """
    if speed <= 0:
        raise ValueError(f"replay_html(speed={speed}): expected a number above 0, such as 0.1")
    sides = given.sides(runs)
    given.need_detail(sides, "Replay")
    shown = make_view(view, Stage(sides, tokenizer, prompts, request))
    moments = Moments(sides)
    most = MAX_FRAMES
    if isinstance(shown, PagesView):
        most = max(12, min(most, _MAX_CELLS // max(1, sides[0].run.steps[0].blocks_total)))
    times = frame_times(moments, most)
    figure, frames = frames_of(shown, [moments.at(at) for at in times], times)
    pace_ms = 1e3 * moments.last_s / speed / max(1, len(times) - 1)
    _add_controls(figure, times, pace_ms)
    words = f"Played at {speed_words(speed)}. {given.caption(sides)}"
    alt = (
        f"Replay of {shown.title} in {theme.format_count(len(times), 'frame')} over "
        f"{theme.format_seconds(moments.last_s)}, with a slider, play and pause."
    )
    page = figure.to_plotly_json()
    page["frames"] = [{"name": f"{n}", **drawn} for n, drawn in enumerate(frames)]
    return figure_html(page, words_html("", words, alt, []), alt, include_plotlyjs, full=full)


def frame_times(moments: Moments, most: int = MAX_FRAMES) -> list[float]:
    """Seconds of the frames: even steps of time, never more than there are moments."""
    count = min(most, len(moments))
    if count < 2:
        return [moments.last_s]
    # The last one exactly: a sum of rounded steps would stop short of the end.
    return [n * moments.last_s / (count - 1) for n in range(count - 1)] + [moments.last_s]


def frames_of(
    view: Any, moments: Sequence[Moment], times: Sequence[float]
) -> tuple[go.Figure, list[dict[str, Any]]]:
    """A view's figure, and what of it changes from moment to moment, as plotly's frames.

    Raises ValueError for a view without frames.
    """
    if isinstance(view, TimelineView):
        return view.figure, _timeline(view, moments, times)
    if isinstance(view, PagesView):
        return view.figure, _pages(view, moments)
    if isinstance(view, TokensView):
        boxes = [[_tokens(view, moment)] for moment in moments]
        return _texts(boxes, [view.view.title], [theme.INK])
    if isinstance(view, TypewritersView):
        lanes = [view.lanes(moment) for moment in moments]
        boxes = [[_typed(line, count) for _, line, count in each] for each in lanes]
        sides = [side for side, *_ in lanes[0]]
        return _texts(boxes, [side.called() for side in sides], [side.colour for side in sides])
    if isinstance(view, TreeView):
        return view.figure, [view.frame(moment) for moment in moments]
    raise ValueError(f"the view {view.title!r} has no version without a kernel")


def _timeline(
    view: TimelineView, moments: Sequence[Moment], times: Sequence[float]
) -> list[dict[str, Any]]:
    frames = []
    for moment, at in zip(moments, times, strict=True):
        shapes = [shape.to_plotly_json() for shape in view.figure.layout.shapes]
        # Between two ends of steps the line goes on: frames are moments of time here.
        place = view.place(Moment(moment.index, at, moment.done))
        moved = [{**s, **view.moved(s["type"], place)} for s in shapes]
        frames.append({"layout": {"shapes": moved}})
    return frames


def _pages(view: PagesView, moments: Sequence[Moment]) -> list[dict[str, Any]]:
    # What hovering would tell of a page is a megabyte of words here.
    view.figure.update_traces(hoverinfo="skip", hovertemplate=None, customdata=None)
    frames = []
    for moment in moments:
        traces = view.traces(moment)
        named = sum(len(trace["x"]) for trace in traces[::2]) <= MAX_NAMED
        data = [_changes(trace, n % 2 == 1, named) for n, trace in enumerate(traces)]
        frames.append(
            {
                "data": data,
                "traces": list(range(len(data))),
                "layout": {"title": {"text": theme.plot_text(view.heading(moment))}},
            }
        )
    return frames


def _changes(trace: Mapping[str, Any], waste: bool, named: bool) -> dict[str, Any]:
    """What can differ between two moments in one trace of the page map (`page_grid.cells`)."""
    kept = {"type": "bar", "base": trace["base"], "x": trace["x"]}
    if named:
        kept |= {"text": trace["text"], "textfont": {"color": trace["textfont"]["color"]}}
    if not waste:
        pattern = {name: trace["marker"]["pattern"][name] for name in ("shape", "fgcolor")}
        kept["marker"] = {"color": trace["marker"]["color"], "pattern": pattern}
    return kept


def _tokens(view: TokensView, moment: Moment) -> str:
    """The newest lines of a text as plotly's markup, each token in its kind's colour."""
    shown = kinds_at(view.view.marks, moment.done[view._side.name])
    lines: list[str] = [""]
    width = 0
    for mark, kind in shown:
        look = view.view.kinds[kind]
        for place, part in enumerate(mark.text.split("\n")):
            if place or width + len(part) > 88:
                lines.append("")
                width = 0
            if part:
                width += len(part)
                text = html.escape(part, quote=False).replace(" ", "\u00a0")
                lines[-1] += f'<span style="color:{look.colour}">{text}</span>'
    return "<br>".join(lines[-_LINES:])


def _typed(line: Sequence[Any], count: int) -> str:
    text = "".join(delivery.text or "▪" for delivery in line[:count]) + "▌"
    lines = [
        part
        for row in text.split("\n")
        for part in textwrap.wrap(row, 42, drop_whitespace=False, replace_whitespace=False) or [""]
    ]
    shown = "<br>".join(html.escape(part, quote=False) for part in lines[-_LINES:])
    return f"{count:,} of {len(line):,} tokens<br><br>{shown}".replace(" ", "\u00a0")


def _texts(
    boxes: Sequence[Sequence[str]], names: Sequence[str], colours: Sequence[str]
) -> tuple[go.Figure, list[dict[str, Any]]]:
    """A figure of texts beside each other, and its frames."""
    lines = max(text.count("<br>") for texts in boxes for text in texts) + 2
    figure = go.Figure(layout=theme.layout("", height=80 + lines * _LINE_PX))
    figure.update_layout(margin={"l": 8, "r": 8, "t": 20, "b": 48})
    # plotly draws frames anew only where there is a trace.
    figure.add_scatter(x=[0], y=[0], mode="markers", marker={"opacity": 0}, hoverinfo="skip")
    figure.update_xaxes(visible=False, range=[0, 1])
    figure.update_yaxes(visible=False, range=[0, 1])
    width = 1 / len(names)
    frames = []
    for texts in boxes:
        notes = []
        for place, (text, name, colour) in enumerate(zip(texts, names, colours, strict=True)):
            heading = f'<b><span style="color:{colour}">{html.escape(name)}</span></b>'
            notes.append(
                {
                    "x": place * width, "y": 1, "xref": "paper", "yref": "paper",
                    "xanchor": "left", "yanchor": "top", "align": "left", "showarrow": False,
                    "font": {"family": "monospace", "size": 13, "color": theme.INK},
                    "text": f"{heading}<br>{text}",
                }
            )  # fmt: skip
        frames.append({"layout": {"annotations": notes}})
    figure.update_layout(frames[0]["layout"])
    return figure, frames


def _add_controls(figure: go.Figure, times: Sequence[float], pace_ms: float) -> None:
    move = {"mode": "immediate", "transition": {"duration": 0}}
    play = {**move, "frame": {"duration": pace_ms, "redraw": True}, "fromcurrent": True}
    still = {**move, "frame": {"duration": 0, "redraw": True}}
    button = {"font": {"size": 12, "color": "#333333"}, "bgcolor": "#eeeeee"}
    figure.update_layout(
        height=int(figure.layout.height or theme.HEIGHT) + 96,
        margin={"b": int(figure.layout.margin.b or 48) + 96},
        updatemenus=[
            {
                "type": "buttons", "direction": "left", "showactive": False, **button,
                "x": 0, "xanchor": "left", "y": 0, "yanchor": "top", "pad": {"t": 62},
                "buttons": [
                    {"label": "Play", "method": "animate", "args": [None, play]},
                    {"label": "Pause", "method": "animate", "args": [[None], still]},
                ],
            }
        ],
        sliders=[
            {
                "active": 0, "x": 0.2, "len": 0.8, "y": 0, "yanchor": "top", "pad": {"t": 48},
                "currentvalue": {"prefix": "at ", "font": {"size": 12, "color": theme.INK}},
                "font": {"color": "rgba(0,0,0,0)"}, "ticklen": 0,
                "steps": [
                    {"label": theme.format_seconds(at), "method": "animate",
                     "args": [[f"{n}"], still]}
                    for n, at in enumerate(times)
                ],
            }
        ],
    )  # fmt: skip
