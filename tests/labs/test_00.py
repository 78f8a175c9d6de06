"""Chapter 00 teaches what is so: the effect, none from nothing, and the run where it loses."""

from __future__ import annotations

import re

import pytest
from labs.chapters import LABS, run_cells

import minserve.hardware
from labs import lint
from minserve.hardware import Ceilings, Rate
from minserve.hardware.ceilings import BandwidthPoint, ProductPoint
from widgets.figures import typewriters
from widgets.figures.strips import strips
from widgets.panels import Compare, Estimate, Recordings
from widgets.theme import format_seconds
from widgets.workers import raise_panel_errors

CHAPTER = "00_start_here"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


def exists(number):
    """A leaf with several chapters (43a, 43b) is there as soon as one of them is."""
    return any([*LABS.glob(f"{number}_*.ipynb"), *LABS.glob(f"{number}[a-z]_*.ipynb")])


def test_the_map_links_the_chapters_there_are_and_marks_those_there_are_not():
    cells = lint.read(LABS / f"{CHAPTER}.ipynb")["cells"]
    (table,) = (text for text in map(lint.source, cells) if "| what you see |" in text)
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 10
    for row in rows:
        last = row.strip("|").split("|")[-1]
        for name, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", last):
            assert (LABS / target).is_file(), f"{target} is linked and not there"
            assert target.startswith(name.split()[0] + "_"), f"“{name}” leads to {target}"
        plain = re.sub(r"\[[^]]+\]\([^)]+\)", "", last)
        numbers = re.findall(r"\b\d\d[a-z]?\b", plain)
        assert [number for number in numbers if exists(number)] == [], f"link it: {row}"
        assert bool(numbers) == ("(planned)" in plain), f"mark what is planned: {row}"


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "model", "race")


def compared(chapter, tokens, switch=True, headline="flops"):
    """The chapter's race over another number of tokens; counts need no real run."""
    race = chapter["race"]
    panel = Compare(race._base, {"memory.kv_cache": switch}, chapter["write"](tokens),
                    names=race.names, rounds=3, headline=headline, clock="virtual")  # fmt: skip
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_switch_is_one_field(chapter):
    configs = chapter["race"].configs()
    off, on = (config.to_dict() for config in configs.values())
    assert {path for path in off if off[path] != on[path]} == {"memory.kv_cache"}


def test_the_headline_effect_passes_its_threshold_in_counts(chapter):
    tokens = chapter["race"].controls["tokens"].value
    result = compared(chapter, tokens)
    off, on = result.counts.values()
    assert off.flops > 50 * on.flops
    assert on.recomputed_tokens == 0 < off.recomputed_tokens
    assert off.peak_kv_bytes_used == 0 < on.peak_kv_bytes_used
    assert on.peak_kv_bytes_used % chapter["llm"].config.model.kv_bytes_per_token(4) == 0
    assert off.output_tokens == on.output_tokens == tokens
    assert ratio(result, "duration_s") < 1


def test_off_against_off_shows_no_effect(chapter):
    result = compared(chapter, 60, switch=False)
    assert not result.changed
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


def test_the_slider_moves_the_headline_and_at_its_lower_end_the_cache_wins_nothing(chapter):
    slider = chapter["race"].controls["tokens"].spec
    gains = [1 / ratio(compared(chapter, n), "flops") for n in (1, 2, 20, int(slider.high))]
    assert gains == sorted(gains) and gains[0] == 1.0 < gains[1] < gains[-1]
    alone = compared(chapter, int(slider.low))
    assert alone.verdict.outcome == "same"


def test_the_texts_are_identical_and_the_guess_is_scored_by_the_run(chapter):
    race = chapter["race"]
    race.controls["tokens"].value = 32  # They show what two hundred do.
    cells = lint.read(lint.LABS / f"{CHAPTER}.ipynb")["cells"]
    exec(next(lint.source(cell) for cell in cells if "guess" in lint.tags(cell)), chapter)
    assert race.result.agreement.held is True
    assert race.masked, "nothing shows before the guess"
    chapter["guess"].guess(1)
    assert chapter["guess"].right is not None and not race.masked
    raise_panel_errors()


def test_the_guess_is_about_the_times_that_both_figures_quote(chapter):
    result = compared(chapter, 32, headline=chapter["late"])
    said = typewriters(result.traces).takeaway
    for value in result.metrics["late_s"].quoted.values():
        assert f"last ones {format_seconds(value)}" in said
    drawn = strips(result.traces, chapter["late"])
    # The cache holds more with every token; without it nothing is kept, whatever a step uses.
    assert "no cache: 0 bytes kept" in [note.text for note in drawn.figure.layout.annotations]
    samples = chapter["late"].samples(result.traces["KV cache"])
    assert sum(seconds for _, seconds in samples) == pytest.approx(
        result.traces["KV cache"].totals.duration_s
    )


def test_the_badge_says_what_is_recorded():
    cells = map(lint.source, lint.read(LABS / f"{CHAPTER}.ipynb")["cells"])
    assert sum("Recordings()" in cell for cell in cells) == 1
    assert "`make gpu PARTS=chapters`" in repr(Recordings())


def limits(chapter, monkeypatch, prompt_tokens):
    """The table of section 5 on a machine far better than this one: overhead is all that is left.

    Also the devices whose ceilings were asked for.
    """
    asked = []

    def ceilings(device, **given):
        asked.append(device)
        read = Rate(1e15, 1e15, 1e15, "read", 3)
        return Ceilings(
            processor="a processor", device="cpu", threads=2, torch_version="2",
            date="2026-11-21", quick=True, cpu_share=None,
            bandwidth=(BandwidthPoint(1 << 20, read, read),), matvec=(),
            matmul=(ProductPoint("float32", 1024, 1024, Rate(1e16, 1e16, 1e16, "mm", 3)),),
        )  # fmt: skip

    monkeypatch.setattr(minserve.hardware, "machine_ceilings", ceilings)
    cells = lint.read(LABS / f"{CHAPTER}.ipynb")["cells"]
    cell = lint.source(next(cell for cell in cells if "limits" in lint.tags(cell)))
    line = "prompt_tokens = 512  # change me and run again"
    assert line in cell
    exec(cell.replace(line, f"prompt_tokens = {prompt_tokens}"), chapter)
    return chapter["limits"], asked


def test_where_overhead_limits_both_kinds_of_step_the_first_rows_still_tell_them_apart(
    chapter, monkeypatch
):
    table, asked = limits(chapter, monkeypatch, 512)
    assert asked == [chapter["llm"].config.device], "a GPU is held against a GPU's ceilings"
    assert list(table.columns) == ["prefill", "decode"]
    counted, modelled = table.iloc[0], table.iloc[1]
    assert float(counted["decode"]) < 1 < 20 < float(counted["prefill"])
    assert "arithmetic above 20 (modelled)" in modelled.name
    assert modelled.to_dict() == {"prefill": "arithmetic", "decode": "bytes"}
    assert set(table.loc["limit here"]) == {"overhead"}
    shares = chapter["shares"]
    more = {each.kind: each.arithmetic_s > each.bytes_s for each in shares}
    assert more == {"prefill": True, "decode": False}


def test_a_short_prefill_has_the_limit_of_a_decode_step(chapter, monkeypatch):
    table, _ = limits(chapter, monkeypatch, 4)
    assert float(table.iloc[0]["prefill"]) < 20
    assert set(table.iloc[1]) == {"bytes"}


def test_keys_without_values_are_half_of_the_bytes_and_not_the_answer(
    chapter, tmp_path, monkeypatch
):
    for guess, right in ((8192, True), (8000, True), (4096, False), (16384, False)):
        monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / f"{guess}.json"))
        asked = Estimate("00.kv_bytes_per_token", {"model": chapter["llm"].config.model})
        asked.guess(guess)
        assert asked.right is right, guess
