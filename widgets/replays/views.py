"""What Replay shows at a moment: a timeline with a cursor, the page map, tokens, typewriters.

A view is made once and moved by one thread. Widgets are made when they are first asked for, so
that a headless run makes none. Chapters register views of their own.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from minserve.request import Output
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.memory.page_grid import cells, grid_columns, page_map
from widgets.figures.memory.page_table import block_size_of, count_pages, pages
from widgets.figures.sides import Side
from widgets.figures.time.deliveries import Delivery, typed
from widgets.figures.time.lanes import Lane, lanes
from widgets.figures.time.request_lanes import timeline
from widgets.figures.time.triangle import choose
from widgets.pieces import Texts
from widgets.replays.live import Shown
from widgets.replays.moments import Moment
from widgets.tokenview import TokenView, token_marks

if TYPE_CHECKING:
    import ipywidgets
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Stage:
    """What views are made from."""

    sides: Sequence[Side]
    tokenizer: Texts | None = None
    prompts: Sequence[Output] | Mapping[str, Sequence[int]] = ()
    request: str | None = None

    def prompt(self, lane: Lane) -> Sequence[int] | None:
        """Token ids of a request's prompt, where they were given."""
        if isinstance(self.prompts, Mapping):
            return self.prompts.get(lane.key[0])
        for output in self.prompts:
            if output.request_id == lane.key[0]:
                return output.prompt_token_ids
        return None


class View(Protocol):
    """A picture with a cursor."""

    title: str

    @property
    def widget(self) -> ipywidgets.Widget:
        """What is displayed; made when first asked for."""
        ...

    def move(self, moment: Moment) -> None:
        """Show the runs as they stood at that moment. Called by one thread."""
        ...


_VIEWS: dict[str, Callable[[Stage], View]] = {}


def register_view(name: str, make: Callable[[Stage], View]) -> None:
    """Let Replay take `views=[name]`."""
    _VIEWS[name] = make


def make_view(view: str | View, stage: Stage) -> View:
    """A view by name; a View object is taken as it is. Raises ValueError for an unknown name."""
    if not isinstance(view, str):
        return view
    if view not in _VIEWS:
        raise ValueError(f"no view is called {view!r}: expected one of {', '.join(_VIEWS)}")
    return _VIEWS[view](stage)


REVEAL_S = 2.0
"""A timeline at least this long is revealed as it plays: what happened later stays veiled."""


class TimelineView(Shown):
    """All runs' lanes with a line at the cursor; of a long run, what comes after it is veiled."""

    title = "timeline"

    def __init__(self, stage: Stage) -> None:
        self._sides = stage.sides
        named = {side.name: side.run for side in stage.sides}
        lab = timeline(named if any(named) else stage.sides[0].run)
        last = given.seconds(list(stage.sides))
        self._factor, _ = theme.time_unit(last)
        # The whole run from the first picture on, or the axis would move with the cursor.
        end = 1.02 * last * self._factor
        lab.figure.update_xaxes(range=[0, end])
        if last >= REVEAL_S:
            lab.figure.add_vrect(
                x0=0, x1=end, fillcolor=theme.VEIL, line={"width": 0}, layer="above",
                row="all", col=1,
            )  # fmt: skip
        lab.figure.add_vline(x=0, line=theme.CURSOR, row="all", col=1)
        super().__init__(lab.figure)

    def place(self, moment: Moment) -> float:
        """The cursor on the time axis."""
        return moment.at_s * self._factor

    def move(self, moment: Moment) -> None:
        """Put the line where the moment is."""

        def put(plot: go.Figure) -> None:
            with plot.batch_update():
                for shape in plot.layout.shapes:
                    shape.update(self.moved(shape.type, self.place(moment)))

        self.live.change(put)

    @staticmethod
    def moved(kind: str, place: float) -> dict[str, float]:
        """Where a shape begins and ends when the cursor is at `place`: the veil's end stays."""
        return {"x0": place} if kind == "rect" else {"x0": place, "x1": place}


class PagesView(Shown):
    """The page pool of one run; of several, the first is shown unless another is chosen."""

    title = "page map"

    def __init__(self, stage: Stage, side: str | None = None) -> None:
        found = [each for each in stage.sides if side in (None, each.name)]
        if not found:
            raise ValueError(f"no side is called {side!r}")
        self._side = found[0]
        self._lanes = lanes(self._side.run)
        self._looks = {
            lane.key: theme.request_look(n, lane.name) for n, lane in enumerate(self._lanes)
        }
        self._size = block_size_of(self._side.run, None)
        self._columns = grid_columns(self._side.run.steps[0].blocks_total)
        super().__init__(page_map(self._side.run, 0, columns=self._columns).figure)

    def heading(self, moment: Moment) -> str:
        """The title at a moment."""
        step = max(0, moment.done[self._side.name])
        words = count_pages(pages(self._side.run, step, self._size, self._lanes), self._size)
        name = f"{self._side.name}, " if self._side.name else ""
        return f"Pages, {name}step {step}: {words.owned:,} of {words.total:,} owned"

    def traces(self, moment: Moment) -> list[dict[str, Any]]:
        """Keywords of the map's traces at a moment."""
        step = max(0, moment.done[self._side.name])
        grid = pages(self._side.run, step, self._size, self._lanes)
        return cells(grid, self._looks, self._size, self._columns)

    def move(self, moment: Moment) -> None:
        """Show the pages of the last step that had ended."""

        def put(plot: go.Figure) -> None:
            with plot.batch_update():
                plot.layout.title.text = theme.plot_text(self.heading(moment))
                for trace, drawn in zip(plot.data, self.traces(moment), strict=False):
                    trace.update(drawn)

        self.live.change(put)


class TokensView:
    """One request's text, coloured by how its tokens came to be; of several runs the first."""

    title = "tokens"

    def __init__(self, stage: Stage) -> None:
        side = stage.sides[0]
        lane = choose(side, stage.request)
        marks = token_marks(side.run, stage.tokenizer, stage.prompt(lane), request=lane.key[0])
        self._side = side
        self.view = TokenView(marks, title=f"Request {lane.name}")
        self._live: ipywidgets.HTML | None = None

    @property
    def widget(self) -> ipywidgets.HTML:
        """The text."""
        if self._live is None:
            import ipywidgets

            self._live = ipywidgets.HTML()
        return self._live

    def move(self, moment: Moment) -> None:
        """Show the text as it stood."""
        self.widget.value = theme.STYLE + self.view.html(moment.done[self._side.name])


class TypewritersView:
    """The same request in every run, side by side: characters appear when they were delivered."""

    title = "typewriters"

    def __init__(self, stage: Stage) -> None:
        named = {side.name: side.run for side in stage.sides}
        found = typed(named, stage.tokenizer, request=stage.request)
        self._lines = [(side, found[side.name]) for side in stage.sides]
        self._live: ipywidgets.HTML | None = None

    @property
    def widget(self) -> ipywidgets.HTML:
        """The lanes."""
        if self._live is None:
            import ipywidgets

            self._live = ipywidgets.HTML()
        return self._live

    def lanes(self, moment: Moment) -> list[tuple[Side, list[Delivery], int]]:
        """(side, all deliveries, how many had arrived) at a moment."""
        return [
            (side, line, sum(d.step <= moment.done[side.name] for d in line))
            for side, line in self._lines
        ]

    def html(self, moment: Moment) -> str:
        """The lanes as HTML."""
        made = []
        for side, line, count in self.lanes(moment):
            text = html.escape("".join(d.text or "▪" for d in line[:count]))
            finished = f", finished after {theme.format_seconds(line[-1].at_s)}"
            state = finished if line and count == len(line) else ""
            name = html.escape(side.name or "the run")
            made.append(
                f'<div style="border-top:3px solid {side.colour};padding:.2rem .4rem">'
                f"<b>{name}</b> {count:,} of {theme.format_count(len(line), 'token')}{state}"
                f'<pre style="{_TYPED}">{text}<span aria-hidden="true">▌</span></pre></div>'
            )
        columns = f"repeat({len(made)}, minmax(0, 1fr))"
        return (
            f'<div class="lab-figure" style="display:grid;gap:1rem;grid-template-columns:{columns}'
            f';max-width:none">{"".join(made)}</div>'
        )

    def move(self, moment: Moment) -> None:
        """Show what had been written."""
        self.widget.value = theme.STYLE + self.html(moment)


_TYPED = (
    "white-space:pre-wrap;overflow-wrap:anywhere;font-family:var(--jp-code-font-family,monospace);"
    "font-size:13px;line-height:1.5;margin:.3rem 0;color:inherit;background:transparent;"
    "min-height:12rem;max-height:22rem;overflow-y:auto"
)

register_view("timeline", TimelineView)
register_view("pages", PagesView)
register_view("tokens", TokensView)
register_view("typewriters", TypewritersView)
