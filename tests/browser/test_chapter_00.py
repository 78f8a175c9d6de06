"""Chapter 00 as a newcomer meets it: Run All, guess, look, scrub, drag, stop."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser.lab import RUN_MS, Notebook

pytestmark = pytest.mark.browser

RACE = "memory.kv_cache: off against on"
HIDDEN = "Hidden until you have given your estimate"
SCORED = re.compile("Right: it is|Not so: it is")


@pytest.fixture(scope="module")
def chapter(open_notebook: Callable[[str], Notebook]) -> Notebook:
    notebook = open_notebook("00_start_here.ipynb")
    notebook.run_all()
    return notebook


def ours(chapter: Notebook) -> set[str]:
    """The chapter's scores: other tests of the session keep theirs in the same file."""
    return {key for key in chapter.lab.scores() if key.startswith("00.")}


def test_text_streams_from_the_first_cell(chapter: Notebook) -> None:
    written = chapter.outputs.first
    written.wait_for(timeout=RUN_MS)
    assert written.text_content()


def test_run_all_ends_without_an_error_and_reveals_nothing(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    race = chapter.panel(RACE)
    chapter.wait_until_all_ran()
    expect(race.get_by_text("Runs when you have given your estimate above")).to_be_visible()
    expect(chapter.errors).to_have_count(0)
    expect(chapter.outputs.get_by_role("alert")).to_have_count(0)
    expect(race.get_by_text(HIDDEN)).to_be_visible()
    # The race's panel, and the places below it that would show its result.
    assert chapter.outputs.get_by_text(HIDDEN).count() > 3
    expect(chapter.plots).to_have_count(0)
    expect(chapter.outputs.get_by_text(re.compile(r"x (faster|slower)"))).to_have_count(0)
    assert not ours(chapter)


def test_no_guess_is_no_answer(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    guess = chapter.estimates.first
    guess.get_by_role("button", name="Check").click()
    expect(guess.get_by_role("status")).to_have_text("Give a number first.")
    expect(chapter.plots).to_have_count(0)


def test_a_guess_is_scored_and_shows_what_was_hidden(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    guess = chapter.estimates.first
    guess.get_by_role("button", name="10x").click()
    guess.get_by_role("button", name="Check").click()
    expect(chapter.panel(RACE).get_by_text("Drawn live").first).to_be_visible(timeout=RUN_MS)
    expect(guess.get_by_role("status").first).to_contain_text(SCORED, timeout=RUN_MS)
    assert chapter.lab.scores()["00.last_token"]["out_of"] == 1

    race = chapter.panel(RACE)
    expect(race.get_by_text(re.compile("“KV cache”: .*x faster"))).to_be_visible()
    expect(chapter.outputs.get_by_text(HIDDEN)).to_have_count(0)
    shown = chapter.drawn_plot(race)
    for side in ("no cache", "KV cache"):
        # Its samples come first; bars of what it pays may follow under the same name.
        trace = next(each for each in shown["traces"] if each["name"] == side)
        assert trace["points"] > 1 and trace["highest"] > 0
    memory = {each["name"]: each["highest"] for each in shown["traces"]}
    assert memory["no cache allocated"] == 0 < memory["KV cache allocated"]
    # The figures below the race.
    expect(chapter.plots.nth(2)).to_be_visible()


def test_a_typed_estimate_is_read_and_scored(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    typed = chapter.estimates.nth(1)
    box = typed.get_by_role("textbox", name="Your estimate")
    check = typed.get_by_role("button", name="Check")
    box.fill("plenty")
    check.click()
    expect(typed.get_by_role("alert")).to_contain_text("is not a number")
    box.fill("4 KiB")
    check.click()
    expect(typed.get_by_role("status").first).to_contain_text(SCORED)
    assert ours(chapter) == {"00.last_token", "00.kv_bytes_per_token"}


def test_the_scores_are_on_the_dashboard(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    refresh = chapter.page.get_by_role("button", name="Refresh", exact=True)
    refresh.click()
    table = chapter.outputs.get_by_role("table", name="Your scores, by chapter")
    expect(table.get_by_role("row").filter(has_text="00")).to_contain_text("of 2")


def test_a_replay_is_scrubbed_stepped_played_and_paused(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    replay = chapter.replays
    lanes = replay.locator("pre")
    expect(lanes).to_have_count(2)
    assert [len(each) for each in lanes.all_text_contents()] == [1, 1]  # the cursors

    moment = chapter.slider(replay, "Moment")
    chapter.drag(moment, 0.5)
    expect(lanes.last).not_to_have_text("▌")
    halfway = [len(each) for each in lanes.all_text_contents()]
    chapter.drag(moment, 1.0)
    expect(replay.get_by_text("finished after")).to_have_count(2)
    whole = [len(each) for each in lanes.all_text_contents()]
    assert whole[0] == whole[1] > max(1, halfway[0])

    before = replay.get_by_text(re.compile(r"of \d+ steps")).inner_text()
    replay.get_by_title("One step back").click()
    expect(replay.get_by_text(re.compile(r"of \d+ steps"))).not_to_have_text(before)

    chapter.drag(moment, 0.0)
    expect(lanes.first).to_have_text("▌")
    play = replay.get_by_title("Play or pause")
    expect(play).to_have_text("Play")
    play.click()
    expect(play).to_have_text("Pause")
    expect(lanes.last).not_to_have_text("▌")
    play.click()
    expect(play).to_have_text("Play")
    expect(replay.get_by_text("finished after")).not_to_have_count(2)


def test_dragged_down_to_one_token_and_run_again(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    race = chapter.panel(RACE)
    before = chapter.drawn_plot(race)
    tokens = chapter.slider(race, "tokens to write")
    chapter.drag(tokens, 0.0)
    expect(tokens.locator(".widget-readout")).to_have_text("1")
    changed = race.get_by_text("Settings have changed")
    expect(changed).to_be_visible()
    race.get_by_role("button", name="Run").click()
    expect(changed).to_have_count(0)
    expect(race.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    chapter.wait_for(lambda: chapter.plot(race) != before, "the plot of the new run")
    expect(chapter.errors).to_have_count(0)


def test_stop_ends_a_run(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    race = chapter.panel(RACE)
    chapter.drag(chapter.slider(race, "tokens to write"), 1.0)
    race.get_by_role("button", name="Run").click()
    expect(race.get_by_text(re.compile("Live: .* is running"))).to_be_visible(timeout=RUN_MS)
    race.get_by_role("button", name="Stop").click()
    expect(race.get_by_text("Stopped. Nothing is quoted from this run.")).to_be_visible()
    expect(race.get_by_role("button", name="Run")).to_be_enabled()
    expect(race.get_by_role("button", name="Stop")).to_be_disabled()
