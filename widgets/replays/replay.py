"""Replay: a run again, at a stated speed, step by step, as often as it takes to see it.

Play, pause, step, scrub and speed move one cursor; every view shows the runs as they stood there.
Nothing plays by itself. Reads traces, runs nothing. What is drawn is `replay_views`', when it is
drawn the painter's.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minserve.request import Output
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.render import source_html
from widgets.figures.sides import Runs
from widgets.painter import Painter
from widgets.pieces import Texts
from widgets.replays.frames import replay_html as replay_html
from widgets.replays.moments import Moment, Moments, speed_words
from widgets.replays.views import Stage, View, make_view

if TYPE_CHECKING:
    import ipywidgets

SPEEDS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
MAX_DRAWINGS = 200
"""Most drawings of one play from beginning to end: a long run is drawn less often."""

# Shown by `sheet` where the reader's system asks for it. Nothing plays before it is told to, there
# or anywhere.
PAUSED = (
    '<div role="status" class="lab-quiet">Your system asks for less motion. This replay is paused: '
    "press Play, or go from step to step.</div>"
)


class Replay:
    """Plays one run, or several beside each other, on one time axis.

    `views` are names ("timeline", "pages", "tokens", "typewriters") or View objects; `tokenizer`
    and `prompts` (Outputs, or request id -> token ids) are for those that show text. `request`
    names the one they show. `close()` ends it; headless, nothing is drawn.
    """

    def __init__(
        self,
        runs: Runs,
        views: Sequence[str | View] = ("timeline",),
        *,
        speed: float = 0.1,
        tokenizer: Texts | None = None,
        prompts: Sequence[Output] | Mapping[str, Sequence[int]] = (),
        request: str | None = None,
        title: str = "Replay",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if speed <= 0:
            raise ValueError(f"Replay(speed={speed}): expected a number above 0, such as 0.1")
        self.sides = given.sides(runs)
        given.need_detail(self.sides, "Replay")
        stage = Stage(self.sides, tokenizer, prompts, request)
        self.views = [make_view(view, stage) for view in views]
        self.moments = Moments(self.sides)
        self.title = title
        self._speed = speed
        self._now = now
        self._lock = threading.RLock()
        self._index = 0
        # (when play was pressed, where the cursor stood in the run's time); None: not playing.
        self._started: tuple[float, float] | None = None
        self._controls: _Controls | None = None
        interval = max(0.25, self.moments.last_s / speed / MAX_DRAWINGS)
        self._painter = Painter(title, self._draw, interval_s=interval)

    # What a chapter and the controls call.

    @property
    def moment(self) -> Moment:
        """Where the cursor stands."""
        with self._lock:
            return self.moments[self._index]

    @property
    def playing(self) -> bool:
        """True while the cursor moves by itself."""
        return self._started is not None

    @property
    def speed(self) -> float:
        """Seconds of the run per second of watching."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        if value <= 0:
            raise ValueError(f"speed {value}: expected a number above 0, such as 0.1")
        with self._lock:
            self._advance()
            self._speed = value
            if self.playing:
                self._started = (self._now(), self.moments[self._index].at_s)
        self._ask()

    def play(self) -> None:
        """Let the cursor move; from the beginning where it stands at the end."""
        with self._lock:
            if self._index == len(self.moments) - 1:
                self._index = 0
            self._started = (self._now(), self.moments[self._index].at_s)
        self._ask()

    def pause(self) -> None:
        """Stop where the cursor is."""
        with self._lock:
            self._advance()
            self._started = None
        self._ask()

    def step(self, by: int = 1) -> None:
        """Move by whole moments (the ends of steps), forward or back; pauses."""
        with self._lock:
            self.pause()
            self.seek(self._index + by)

    def seek(self, index: int) -> None:
        """Put the cursor on the moment of that index, within the run; pauses."""
        with self._lock:
            self._started = None
            self._index = min(max(0, index), len(self.moments) - 1)
        self._ask()

    def seek_time(self, seconds: float) -> None:
        """Put the cursor on the newest moment that is not after `seconds`; pauses."""
        self.seek(self.moments.at(seconds).index)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the views show the cursor (while playing: until the end)."""
        return self._painter.flush(timeout_s)

    def close(self) -> None:
        """End the thread, disable the controls, keep the last picture."""
        with self._lock:
            self._started = None
        self._painter.close()
        self._painter.flush(2.0)
        if self._controls is not None:
            self._controls.disable()

    @property
    def label(self) -> str:
        """The cursor in words."""
        moment = self.moment
        parts = []
        for side in self.sides:
            done, total = moment.done[side.name] + 1, len(side.run.steps)
            name = f"{side.name}: " if side.name else ""
            parts.append(f"{name}{done:,} of {theme.format_count(total, 'step')}")
        when = f"{theme.format_seconds(moment.at_s)} of {theme.format_seconds(self.moments.last_s)}"
        return f"{when}; {'; '.join(parts)}"

    @property
    def text(self) -> str:
        """What headless readers get instead of the pictures."""
        shows = ", ".join(view.title for view in self.views)
        return f"{self.title}: {shows}; {self.label}. {given.caption(self.sides)}"

    # Drawing.

    def _advance(self) -> None:
        """Put the cursor where time has carried it; the end stops it."""
        if self._started is None:
            return
        since, begin_s = self._started
        at_s = begin_s + (self._now() - since) * self._speed
        self._index = max(self._index, self.moments.at(at_s).index)
        if self._index == len(self.moments) - 1:
            self._started = None

    def _ask(self) -> None:
        if self._controls is not None and not self._painter.painting:
            self._painter.ask()

    def _draw(self) -> bool:
        with self._lock:
            self._advance()
            moment, playing = self.moments[self._index], self.playing
        for view in self.views:
            view.move(moment)
        if self._controls is not None:
            self._controls.show(moment.index, self.label, playing)
        return playing

    # The notebook.

    @property
    def widget(self) -> ipywidgets.VBox:
        """Controls above the views; made when first asked for."""
        return self.controls.box

    @property
    def controls(self) -> _Controls:
        """The buttons and sliders. Raises RuntimeError where nothing is drawn."""
        if self._controls is None:
            if theme.headless():
                raise RuntimeError("MINSERVE_HEADLESS is set: Replay draws nothing")
            self._controls = _Controls(self)
            moment = self.moment
            for view in self.views:
                view.move(moment)
        return self._controls

    @property
    def painting(self) -> bool:
        """True in the thread that draws."""
        return self._painter.painting

    @property
    def drawings(self) -> int:
        """How often the views were drawn anew."""
        return self._painter.drawings

    def _ipython_display_(self) -> None:
        from IPython.display import display

        from widgets.notebooks.fallback import bundle

        if theme.headless():
            display({"text/plain": self.text}, raw=True)
        else:
            display(bundle(self.widget, self.text), raw=True)


class _Controls:
    """Buttons, slider and speed: ipywidgets' own, so that all of them work from the keyboard."""

    def __init__(self, replay: Replay) -> None:
        import ipywidgets as widgets

        self._replay = replay
        self.play = widgets.Button(description="Play", icon="play", tooltip="Play or pause")
        self.back = widgets.Button(icon="step-backward", tooltip="One step back")
        self.forward = widgets.Button(icon="step-forward", tooltip="One step forward")
        for button in (self.back, self.forward):
            button.layout.width = "3rem"
        self.slider = widgets.IntSlider(
            0, 0, max(1, len(replay.moments) - 1), readout=False, description="Moment",
            layout=widgets.Layout(flex="1 1 16rem", min_width="10rem"),
        )  # fmt: skip
        speeds = sorted({*SPEEDS, replay.speed}, reverse=True)
        self.speed = widgets.Dropdown(
            options=[(speed_words(speed), speed) for speed in speeds],
            value=replay.speed, description="Speed", layout=widgets.Layout(width="15rem"),
        )  # fmt: skip
        self.label = widgets.HTML()
        row = widgets.HBox(
            [self.play, self.back, self.forward, self.slider, self.speed],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        source = source_html(given.caption(replay.sides))
        caption = widgets.HTML(f'{theme.STYLE}<div class="lab-figure">{source}</div>')
        heading = widgets.HTML(f'<b role="heading" aria-level="4">{html.escape(replay.title)}</b>')
        views = [view.widget for view in replay.views]
        self.box = widgets.VBox([heading, row, widgets.HTML(PAUSED), self.label, *views, caption])
        self.show(replay.moment.index, replay.label, False)
        self.play.on_click(lambda _: replay.pause() if replay.playing else replay.play())
        self.back.on_click(lambda _: replay.step(-1))
        self.forward.on_click(lambda _: replay.step(1))
        self.slider.observe(self._scrubbed, "value")
        self.speed.observe(self._sped, "value")

    def _scrubbed(self, change: dict[str, Any]) -> None:
        # The drawing thread moves the slider too; that is no wish of the reader.
        if not self._replay.painting:
            self._replay.seek(change["new"])

    def _sped(self, change: dict[str, Any]) -> None:
        self._replay.speed = change["new"]

    def show(self, index: int, label: str, playing: bool) -> None:
        """Bring the controls up to date: in the drawing thread, or before they are displayed."""
        self.slider.value = index
        self.label.value = f'<span aria-live="off">{html.escape(label)}</span>'
        self.play.description = "Pause" if playing else "Play"
        self.play.icon = "pause" if playing else "play"

    def disable(self) -> None:
        """No more input."""
        for control in (self.play, self.back, self.forward, self.slider, self.speed):
            control.disabled = True
