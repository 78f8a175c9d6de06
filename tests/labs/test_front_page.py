"""The front page's figures are what the engine and the folder of chapters say today."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from labs.lint import LABS

from widgets.panels.exercises.exercise import load_module

FRONT = load_module(LABS / "tools" / "front.py")
TAXONOMY = load_module(LABS / "tools" / "taxonomy.py")


@pytest.fixture(scope="module")
def sides():
    return FRONT.run("whole", chunked=False), FRONT.run("chunked", chunked=True)


def test_one_long_step_freezes_the_chats_and_chunks_do_not(sides):
    whole, chunked = (side.freeze[1] - side.freeze[0] for side in sides)
    assert whole > 1 and chunked < whole / 10
    # The same tokens on both sides: only when they come differs.
    assert [len(times) for times in sides[0].tokens] == [len(times) for times in sides[1].tokens]


def test_the_stored_figure_is_what_the_engine_does_today():
    drawn = FRONT.draw(
        [
            FRONT.run("The long prompt in one step", chunked=False),
            FRONT.run("Chunked prefill: the same work, 512 tokens a step", chunked=True),
        ]
    )
    assert (LABS / "figures" / "front.svg").read_text(encoding="utf-8") == drawn, (
        "draw it again: python labs/tools/front.py"
    )


def test_the_stored_map_shows_the_chapters_that_are_there():
    drawn = TAXONOMY.draw(TAXONOMY.written())
    assert (LABS / "figures" / "taxonomy.svg").read_text(encoding="utf-8") == drawn, (
        "draw it again: python labs/tools/taxonomy.py"
    )


def test_a_chapter_that_is_not_on_the_map_is_refused():
    with pytest.raises(ValueError, match="'99'"):
        TAXONOMY.draw({"00", "99"})


@pytest.mark.parametrize("name", ["front.svg", "taxonomy.svg"])
def test_a_figure_of_the_front_page_is_small_complete_and_says_what_it_shows(name):
    text = (LABS / "figures" / name).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and len(text) < 40_000
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and len(title.text or "") > 60
    assert not re.search(r"href|url\(http|<script", text), "it needs nothing else"
    assert "prefers-color-scheme: dark" in text


def test_the_moving_figure_stands_still_where_that_is_asked_for():
    text = (LABS / "figures" / "front.svg").read_text(encoding="utf-8")
    assert "prefers-reduced-motion: reduce) { .curtain { display: none } }" in text
