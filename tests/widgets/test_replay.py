"""Replay driven control by control, as a reader would, without a browser."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import workers
from widgets.replays.frames import frame_times, replay_html
from widgets.replays.moments import Moment, Moments, speed_words
from widgets.replays.replay import Replay
from widgets.replays.views import Stage, make_view, register_view

ALL = ("timeline", "pages", "tokens", "typewriters")


pytestmark = pytest.mark.usefixtures("drawn")


class Clock:
    """A stopwatch that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def replay(trace: RunTrace, clock: Clock) -> Iterator[Replay]:
    made = Replay(trace, ALL, speed=0.1, request="request-0", now=clock)
    made.controls  # noqa: B018 (as displaying it does)
    yield made
    made.close()


def shown(replay: Replay) -> tuple[float, str, str, str]:
    """What the four linked views show now."""
    assert replay.flush()
    timeline, pages, tokens, typewriters = replay.views
    line = timeline.live.figure.layout.shapes[0]
    assert line.x0 == line.x1
    found = re.search(r"(\d+) of \d+ tokens", typewriters.widget.value)
    assert found is not None
    return line.x0, pages.live.figure.layout.title.text, tokens.widget.value, found[1]


def delivered(trace: RunTrace, steps: int) -> int:
    parts = [part for step in trace.steps[:steps] for part in step.requests]
    return sum(len(part.new_token_ids) for part in parts if part.request_id == "request-0")


def test_step_buttons_move_every_view_by_one_step(replay: Replay, trace: RunTrace) -> None:
    controls = replay.controls
    for presses in range(1, 4):
        controls.forward.click()
        place, title, tokens, count = shown(replay)
        step = trace.steps[presses - 1]
        assert replay.moment.index == controls.slider.value == presses
        assert place == pytest.approx((step.end_s - trace.steps[0].start_s) * 1e3)
        assert f"step {presses - 1}: {step.blocks_used} of 8" in title
        assert int(count) == delivered(trace, presses)
        assert f"in step {presses - 1}," in tokens
    before = shown(replay)
    controls.forward.click()
    assert shown(replay) != before
    controls.back.click()
    assert shown(replay) == before


def test_ends_of_the_run_are_not_passed(replay: Replay) -> None:
    replay.controls.back.click()
    assert replay.moment.index == 0
    replay.seek(10_000)
    replay.controls.forward.click()
    assert replay.moment.at_s == replay.moments.last_s
    assert replay.controls.slider.max == len(replay.moments) - 1


def test_scrubbing_shows_the_newest_position(replay: Replay, trace: RunTrace) -> None:
    for value in (3, 9, 17, 12):
        replay.controls.slider.value = value
    place, title, _, count = shown(replay)
    assert place == pytest.approx(1e3 * (trace.steps[11].end_s - trace.steps[0].start_s))
    assert "step 11" in title
    assert int(count) == delivered(trace, 12)
    assert "12 of 29 steps" in replay.controls.label.value


def test_scrubbing_draws_at_most_four_times_a_second(replay: Replay) -> None:
    for value in range(1, 25):
        replay.controls.slider.value = value
    assert replay.flush()
    assert replay.drawings <= 3
    assert replay.controls.slider.value == 24


def test_nothing_plays_by_itself(replay: Replay, clock: Clock) -> None:
    clock.seconds += 1e6
    assert not replay.playing
    assert replay.moment.index == 0 and replay.drawings == 0
    assert replay.controls.play.description == "Play"
    assert not [t for t in threading.enumerate() if t.name.startswith("painter")]


def test_play_moves_at_the_stated_speed_and_pause_holds(
    replay: Replay, clock: Clock, trace: RunTrace
) -> None:
    controls = replay.controls
    controls.play.click()
    assert replay.playing
    clock.seconds += 0.5  # a tenth of real time: 50 ms of the run
    controls.play.click()
    assert not replay.playing
    place, *_ = shown(replay)
    assert replay.moment == replay.moments.at(0.05)
    assert place == pytest.approx(1e3 * replay.moment.at_s)
    assert controls.play.description == "Play"
    clock.seconds += 100
    assert replay.moment == replay.moments.at(0.05)
    controls.play.click()
    clock.seconds += 0.2
    replay.pause()
    assert replay.moment == replay.moments.at(replay.moments.at(0.05).at_s + 0.02)


def test_playing_ends_at_the_end_and_starts_again(replay: Replay, clock: Clock) -> None:
    replay.play()
    clock.seconds += 1e3
    assert replay.flush()
    assert not replay.playing
    assert replay.moment.at_s == replay.moments.last_s
    assert replay.controls.slider.value == replay.controls.slider.max
    assert replay.controls.play.description == "Play"
    replay.play()
    assert replay.moment.index == 0 and replay.playing
    replay.pause()


def test_the_button_says_pause_while_it_plays(replay: Replay, clock: Clock) -> None:
    replay.play()
    for _ in range(200):
        if replay.controls.play.description == "Pause":
            break
        threading.Event().wait(0.01)
    assert replay.controls.play.description == "Pause"
    replay.controls.slider.value = 5
    assert not replay.playing, "scrubbing pauses"
    assert replay.flush() and replay.controls.play.description == "Play"


def test_speed_changes_from_where_the_cursor_is(replay: Replay, clock: Clock) -> None:
    replay.play()
    clock.seconds += 0.3
    replay.controls.speed.value = 1.0
    here = replay.moment.at_s
    assert here == replay.moments.at(0.03).at_s
    clock.seconds += 0.01
    replay.pause()
    assert replay.moment == replay.moments.at(here + 0.01)
    assert ("real time", 1.0) in replay.controls.speed.options
    with pytest.raises(ValueError, match="above 0"):
        replay.speed = 0


def test_closing_ends_the_thread_and_disables_the_controls(replay: Replay, clock: Clock) -> None:
    replay.play()
    replay.close()
    assert not [t for t in threading.enumerate() if t.name == "painter: Replay" and t.is_alive()]
    assert replay.controls.forward.disabled and replay.controls.slider.disabled
    count = replay.drawings
    replay.controls.forward.click()
    assert replay.drawings == count
    replay.close()


def test_controls_are_keyboard_widgets_with_names(replay: Replay) -> None:
    controls = replay.controls
    for button in (controls.play, controls.back, controls.forward):
        assert button.tooltip
    assert controls.slider.description and controls.speed.description


def test_two_runs_share_one_time_axis() -> None:
    off, on = runs.without_cache(), runs.with_cache()
    replay = Replay({"off": off, "on": on}, ("typewriters", "timeline"))
    replay.controls  # noqa: B018
    end = on.totals.duration_s
    replay.seek_time(end)
    assert replay.flush()
    moment = replay.moment
    assert moment.done["on"] == len(on) - 1
    assert moment.done["off"] == sum(s.end_s - off.steps[0].start_s <= end for s in off.steps) - 1
    counts = re.findall(r"(\d+) of 10 tokens", replay.views[0].widget.value)
    assert [int(n) for n in counts] == [moment.done["off"] + 1, 10]
    assert len(replay.views[1].live.figure.layout.shapes) == 2
    replay.close()


def test_headless_draws_nothing_and_still_moves(
    trace: RunTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    replay = Replay(trace, ALL)
    replay._ipython_display_()
    replay.step(3)
    replay.play()
    replay.pause()
    assert replay.drawings == 0 and replay.flush()
    assert replay.moment.index >= 3
    assert all(view._live is None for view in replay.views)
    assert list(bundles[0]) == ["text/plain"] and "29 steps" in bundles[0]["text/plain"]
    with pytest.raises(RuntimeError, match="MINSERVE_HEADLESS"):
        replay.widget  # noqa: B018


def test_an_error_in_a_view_reaches_the_last_cell(trace: RunTrace) -> None:
    class Broken:
        title = "broken"
        calls = 0

        @property
        def widget(self):  # type: ignore[no-untyped-def]
            import ipywidgets

            return ipywidgets.HTML()

        def move(self, moment: Moment) -> None:
            if moment.index:
                raise ArithmeticError("cannot draw this")

    replay = Replay(trace, [Broken()])
    replay.controls.forward.click()
    replay.flush()
    with pytest.raises(ArithmeticError, match="cannot draw this"):
        workers.raise_panel_errors()
    workers._live.clear()


def test_views_are_a_registry(trace: RunTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widgets.replays.views._VIEWS", {})
    register_view("mine", lambda stage: stage)  # type: ignore[arg-type,return-value]
    stage = Stage(Replay(trace, []).sides)
    assert make_view("mine", stage) is stage
    with pytest.raises(ValueError, match="expected one of mine"):
        make_view("timeline", stage)


def test_a_run_without_detail_is_refused(trace: RunTrace) -> None:
    with pytest.raises(ValueError, match=r"trace\.per_request"):
        Replay(runs.without_detail(trace))
    with pytest.raises(ValueError, match="above 0"):
        Replay(trace, speed=0)


def test_moments_are_the_ends_of_steps(trace: RunTrace) -> None:
    moments = Moments(Replay(trace, []).sides)
    assert len(moments) == len(trace) + 1
    for index in range(len(moments)):
        assert moments[index].done[""] == index - 1
        assert moments.at(moments[index].at_s).index == index
    assert moments.at(-1).index == 0
    assert moments.of_step("", 4).index == 5
    assert moments[-1].index == len(trace)


def test_speeds_are_said_as_fractions() -> None:
    assert [speed_words(s) for s in (1, 0.1, 0.02, 0.25, 4)] == [
        "real time", "1/10 of real time", "1/50 of real time", "1/4 of real time",
        "4 times real time",
    ]  # fmt: skip


@pytest.mark.parametrize("view", ALL)
def test_a_page_without_a_kernel_has_frames_and_a_slider(view: str, trace: RunTrace) -> None:
    page = replay_html(trace, view, include_plotlyjs=False, full=True)
    assert page.startswith("<!DOCTYPE html>") and "Plotly.addFrames" in page
    assert page.count('"method":"animate"') == len(trace) + 1 + 2
    assert "Played at 1\\u002f10" in page or "Played at 1/10 of real time" in page
    assert 'role="img"' in page
    # Frames wait for the reader.
    assert "Plotly.animate" not in page
    assert len(page) < 600_000


def test_frames_keep_time(trace: RunTrace) -> None:
    moments = Moments(Replay(trace, []).sides)
    times = frame_times(moments, 10)
    assert len(times) == 10 and times[0] == 0 and times[-1] == moments.last_s
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) == pytest.approx(min(gaps))


def test_a_large_pool_has_fewer_frames() -> None:
    page = replay_html(runs.echo_run(num_blocks=1200), "pages", include_plotlyjs=False)
    assert len(page) < 3_000_000
    with pytest.raises(ValueError, match="above 0"):
        replay_html(runs.echo_run(), speed=0)
