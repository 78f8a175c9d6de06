"""The looks at a page notice what is wrong: each on a page with the fault, and on one without any.

The pages are this file's own; no notebook is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from browser.lab import LOOKS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

Look = Callable[[str, str], list[str]]

PLOT = """<div class="js-plotly-plot" style="height:100px;width:300px">
<svg class="main-svg" width="300" height="100" style="overflow:visible">{}</svg></div>"""
TITLE = '<g class="gtitle"><text x="10" y="20">a title</text></g>'
LEGEND = '<text class="legendtext" x="{}" y="{}">one side</text>'
DOT = '<g class="scatterlayer"><g class="points"><path class="point" d="M{},80h6v6h-6Z"/></g></g>'


@pytest.fixture(scope="module")
def look(browser: Browser) -> Iterator[Look]:
    page = browser.new_page(viewport={"width": 600, "height": 400})

    def at(what: str, output: str) -> list[str]:
        page.set_content(
            '<body style="background:#fff;color:#000"><div class="jp-Notebook">'
            f'<div class="jp-OutputArea-output" style="width:400px">{output}</div></div></body>'
        )
        page.evaluate(LOOKS.read_text(encoding="utf-8"))
        found: list[str] = page.evaluate(f"() => minserveLooks.{what}()")
        return found

    yield at
    page.close()


FAULTS = {
    "a box that scrolls by four pixels": (
        "wider", '<div style="overflow:auto"><p style="width:404px">wide</p></div>',
        "scrolls by 4 pixels"),
    "a button that cuts its words": (
        "wider", '<button style="width:40px;overflow:hidden;text-overflow:ellipsis">Import all my '
        "scores</button>", "is cut"),
    "a number broken in two": (
        "broken", '<p style="width:50px;word-break:break-all">it took 1,234.56 s</p>',
        "“1,234.56” is broken over 2 lines"),
    "a table that breaks its words": (
        "broken", '<table style="width:60px;overflow-wrap:anywhere"><tr><td>computed</td>'
        "<td>everything</td></tr></table>", "is broken over"),
    "grey text": ("pale", '<p style="color:#777777">text</p>', "4.48 to 1"),
    "see-through text": ("pale", '<p style="opacity:0.5">text</p>', "to 1"),
    "text on a dark box": ("pale", '<p style="background:#222">text</p>', "to 1"),
    "a pale label in a plot": (
        "pale", PLOT.format('<text x="10" y="20" fill="#D55E00">side</text>'), "3.87 to 1"),
    "black text over a dark bar": (
        "pale", PLOT.format('<rect width="200" height="50" fill="#003355"/>'
                            '<text x="10" y="20">bar</text>'), "to 1"),
    "a label that leaves the plot": (
        "crowded", PLOT.format(TITLE + LEGEND.format(280, 60)), "leaves the plot"),
    "two labels over each other": (
        "crowded", PLOT.format(TITLE + LEGEND.format(20, 22)), "overlap"),
    "a label over a dot": (
        "crowded", PLOT.format(TITLE + DOT.format(40) + LEGEND.format(20, 86)), "over a dot"),
    "a title that only a mouse opens": (
        "unreachable", '<div style="cursor:pointer">More</div>', "only a mouse"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(name: str, look: Look) -> None:
    what, output, words = FAULTS[name]
    found = look(what, output)
    assert any(words in each for each in found), found


GOOD = (
    '<div style="overflow:auto"><p style="color:#555">text</p><button>Run</button></div>'
    + f"<p style='overflow-wrap:anywhere'>{'x' * 90}</p><p style='width:80px'>first-served</p>"
    + "<p hidden style='color:#fff'>hidden</p><details><summary>Source</summary>words</details>"
    + PLOT.format(
        TITLE
        + LEGEND.format(100, 60)
        + DOT.format(40)
        + '<rect x="10" y="85" width="60" height="15" fill="#003355"/>'
        + '<text x="15" y="97" font-size="11" fill="#fff">bar</text>'
    )
)


@pytest.mark.parametrize("what", ["wider", "broken", "pale", "crowded", "unreachable"])
def test_nothing_is_said_about_a_good_page(what: str, look: Look) -> None:
    assert look(what, GOOD) == []
