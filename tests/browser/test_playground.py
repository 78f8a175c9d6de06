"""The playground as a page: four sides, a refused combination, both clocks, a code, the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser.lab import RUN_MS, Notebook

from minserve.bench.compare.code import decode, encode
from minserve.bench.compare.setup import Setup, Variant
from minserve.bench.compare.workload import Workload

pytestmark = pytest.mark.browser

TITLE = "The playground"
FEW = Workload("independent", {"count": 6, "prompt": 12, "output": 8, "rate": 0.0})
SMALL = Setup(
    base={"memory.kv_bytes": 16 << 20},
    base_name="plain",
    variants=(Variant("static", {"scheduling.policy": "static"}),),
    workload=FEW,
)


@pytest.fixture(scope="module")
def page(open_notebook: Callable[[str], Notebook]) -> Notebook:
    notebook = open_notebook("02_playground.ipynb")
    notebook.run_all()
    return notebook


def restore(page: Notebook, code: str) -> None:
    """Paste a code into the box under “Code”, and press the button."""
    place = page.panel(TITLE)
    fold = place.get_by_role("button", name=re.compile("Code: keep, share"))
    if "mod-active" not in (fold.get_attribute("class") or ""):
        fold.click()
    place.get_by_label("Code", exact=True).fill(code)
    place.get_by_role("button", name="Restore", exact=True).click()


def run(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    changed = place.get_by_text("Settings have changed")
    # What is there is another comparison's, so what comes is the new one's.
    expect(changed).to_be_visible()
    place.get_by_role("button", name="Run all sides", exact=True).click()
    expect(changed).to_have_count(0, timeout=RUN_MS)
    expect(place.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)


def test_run_all_starts_a_first_comparison(page: Notebook) -> None:
    from playwright.sync_api import expect

    page.wait_until_all_ran()
    place = page.panel(TITLE)
    expect(place.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    assert len(page.drawn_plot(place)["traces"]) > 2
    expect(place.get_by_text("KV used, peak")).to_be_visible()
    expect(page.errors).to_have_count(0)


def test_a_code_restores_a_comparison_on_this_machine(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    restore(page, encode(SMALL))
    expect(place.get_by_text("Settings have changed")).to_be_visible()
    expect(place.get_by_role("button", name="scheduling.policy = static")).to_be_visible()
    run(page)
    expect(place.get_by_text(re.compile("tokens identical"))).to_be_visible()
    expect(place.get_by_text(re.compile("measured in 3 rounds|counted")).first).to_be_visible()


def test_a_code_that_is_damaged_is_refused_in_a_sentence(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    restore(page, encode(SMALL)[:-5])
    expect(place.get_by_text(re.compile("this code is damaged"))).to_be_in_viewport()
    assert place.get_by_label("Code", exact=True).input_value() == encode(SMALL)[:-5]
    expect(place.get_by_role("button", name="scheduling.policy = static")).to_be_visible()


def test_a_decimal_comma_is_refused_below_its_box(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    box = place.get_by_label("requests per second (0: all wait at the start)", exact=True)
    box.fill("0,5")
    box.press("Enter")
    refused = place.get_by_role("alert").filter(has_text="with a point before decimals")
    expect(refused).to_be_in_viewport()
    expect(box).to_have_value("0")
    above, below = box.bounding_box(), refused.bounding_box()
    assert above is not None and below is not None
    assert 0 < below["y"] - above["y"] < 60, "it stands below its box"


def test_two_more_variants_make_four_sides(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    add = place.get_by_role("button", name="Add a variant")
    place.get_by_role("button", name="Configuration: scheduling").click()
    for seats in ("1", "2"):
        add.click()
        expect(place.get_by_label("Its name")).to_have_value(f"variant {seats}")
        box = place.get_by_label("max_num_seqs", exact=True)
        expect(box).to_have_value("64")
        box.fill(seats)
        box.press("Enter")
        taken = place.get_by_role("button", name=f"scheduling.max_num_seqs = {seats}")
        expect(taken).to_be_visible()
    expect(add).to_be_disabled()
    run(page)
    names = {"plain", "static", "variant 1", "variant 2"}
    page.wait_for(
        lambda: names <= {trace["name"] for trace in page.plot(place)["traces"]},
        "the plot of four sides",
    )
    expect(place.get_by_role("columnheader", name="variant 2").first).to_be_visible()


def test_a_combination_that_cannot_work_is_refused_with_the_rules_sentence(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    place.get_by_label("order", exact=True).select_option(label="lpm (refused here)")
    refused = place.get_by_text(re.compile("“variant 2” cannot run: .*prefix_cache")).first
    expect(refused).to_be_visible()
    place.get_by_role("button", name="Run all sides", exact=True).click()
    expect(place.get_by_role("alert").filter(has_text="cannot run")).to_have_count(2)
    place.get_by_role("button", name="scheduling.order = lpm").click()
    expect(place.get_by_role("alert").filter(has_text="cannot run")).to_have_count(0)


def test_the_virtual_clock_models_the_same_four_sides(page: Notebook) -> None:
    from playwright.sync_api import expect

    place = page.panel(TITLE)
    place.get_by_label("Clock", exact=True).select_option(label="virtual clock (modelled)")
    gpu = place.get_by_label("Modelled GPU", exact=True)
    expect(gpu).to_be_visible()
    run(page)
    expect(place.get_by_text(re.compile(r"TTFT.*\(modelled\)")).last).to_be_visible()
    gpu.select_option(label="your own GPU")
    expect(page.slider(place, "Bandwidth, GB/s")).to_be_visible()
    expect(place.get_by_text("Settings have changed")).to_be_visible()
    run(page)
    expect(page.errors).to_have_count(0)


def test_the_files_hold_what_is_shown(page: Notebook) -> None:
    place = page.panel(TITLE)
    with page.page.expect_download() as download:
        place.get_by_role("link", name="JSON", exact=True).click()
    data = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert list(data["sides"]) == ["plain", "static", "variant 1", "variant 2"]
    assert decode(data["code"]).clock == "virtual"
    with page.page.expect_download() as download:
        place.get_by_role("button", name="PNG", exact=True).click()
    assert download.value.suggested_filename == "playground.png"
    picture = Path(download.value.path()).read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    # Twice as large as the plot, and higher by a title and a source.
    shown = place.locator(".js-plotly-plot").first.bounding_box()
    assert shown is not None
    width, height = (int.from_bytes(picture[at : at + 4]) for at in (16, 20))
    assert width == pytest.approx(2 * shown["width"], abs=4)
    assert height > 2 * shown["height"] + 100


def test_a_challenge_is_taken_and_solved(page: Notebook) -> None:
    from playwright.sync_api import expect

    challenges = page.panel("Challenges")
    challenges.get_by_label("Challenge", exact=True).select_option(label="One system prompt")
    challenges.get_by_role("button", name="Take it", exact=True).click()
    place = page.panel(TITLE)
    # The page goes to the task and to the sides below it.
    expect(place.get_by_text("Challenge: One system prompt")).to_be_in_viewport()
    expect(place.get_by_role("button", name="mine", exact=True)).to_be_in_viewport()
    place.get_by_role("button", name="Configuration: memory").click()
    place.get_by_label("prefix_cache", exact=True).select_option(label="radix")
    run(page)
    # Beside the button that was pressed.
    solved = place.get_by_text(re.compile("One system prompt, “mine”. Solved, 10 of 10 points"))
    expect(solved).to_be_in_viewport(timeout=RUN_MS)
    assert page.lab.scores()["02.shared"]["best"] == 10.0


def test_nothing_scrolls_aside_and_text_stands_out(page: Notebook) -> None:
    for width in (1600, 1280):
        page.resize(width, 1000)
        assert page.look("wider") == []
        assert page.look("crowded") == []
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        page.use_theme(theme)
        assert page.look("pale") == []
    assert page.look("unreachable") == []


COMPARE = """
from minserve import EngineConfig
from minserve.bench.workloads.traffic import at_once, fixed_length
from widgets.panels import Compare

Compare(
    EngineConfig(), {"scheduling.policy": "static"},
    at_once([[3, 4, 5], [3, 4, 6, 7]], [fixed_length(4), fixed_length(9)]),
    names=("moving", "standing"), rounds=3, title="A comparison of a chapter",
)
"""


def test_a_chapters_comparison_opens_in_the_playground(
    page: Notebook, open_notebook: Callable[[str], Notebook]
) -> None:
    from playwright.sync_api import expect

    page.lab.add("99_compare.ipynb", [COMPARE.strip()])
    chapter = open_notebook("99_compare.ipynb")
    chapter.run_all()
    chapter.wait_until_all_ran()
    panel = chapter.panel("A comparison of a chapter")
    panel.get_by_role("button", name="Open in the playground").click()
    box = panel.get_by_label("Code", exact=True)
    expect(box).to_have_value(re.compile("^play1"))
    code = box.input_value()
    link = panel.get_by_role("link", name="02_playground.ipynb")
    assert link.evaluate("link => new URL(link.href).pathname").endswith("/02_playground.ipynb")
    with chapter.page.expect_popup() as popup:
        link.click()
    expect(popup.value.get_by_role("tab", name="02_playground.ipynb")).to_be_visible()
    popup.value.close()
    chapter.page.close()
    restore(page, code)
    place = page.panel(TITLE)
    for name in ("moving", "standing"):
        expect(place.get_by_role("button", name=name, exact=True)).to_be_visible()
    expect(place.get_by_text("2 requests.")).to_be_visible()
