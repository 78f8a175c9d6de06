"""The visual language: told apart by every kind of sight, readable on light and dark pages."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from widgets import sheet, theme, tokenview

PAGES = {"white": "#ffffff", "JupyterLab dark": "#111111"}

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHTS = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    light, dark = sorted((float(weights @ linear(c)) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("page", PAGES)
def test_text_and_sides_stand_out_from_the_page(page: str) -> None:
    assert contrast(theme.INK, PAGES[page]) > 4
    for colour in theme.SIDES.values():
        assert contrast(colour, PAGES[page]) > 3


def mixed(colour: str, ink: str) -> str:
    """What `color-mix` makes of a text's colour and the page's text colour."""
    parts = [
        round(
            sheet.SHARE * int(colour[n : n + 2], 16) + (1 - sheet.SHARE) * int(ink[n : n + 2], 16)
        )
        for n in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in parts)


# JupyterLab's text, 87 % black and white; and what exported pictures have (`render`).
INKS = {"white": ("#212121", "#333333"), "JupyterLab dark": ("#ffffff", "#d0d0d0")}


@pytest.mark.parametrize("page", PAGES)
def test_text_stands_out_from_the_page_as_guidelines_ask(page: str) -> None:
    for ink in INKS[page]:
        assert contrast(ink, PAGES[page]) >= 4.5
        for colour in theme.TEXT_COLOURS:
            assert contrast(mixed(colour, ink), PAGES[page]) >= 4.5, (colour, ink)


def test_text_on_bars_stands_out_from_them() -> None:
    looks = [*theme.STATES.values(), *theme.STAGES.values(), *map(theme.request_look, range(8))]
    for look in looks:
        if look.colour.startswith("#"):
            assert contrast(theme.on(look.colour), look.colour) >= 4.5, look.label


def test_text_of_a_token_kind_is_among_the_colours_made_readable() -> None:
    assert {kind.colour for kind in tokenview.KINDS.values()} <= set(theme.TEXT_COLOURS)


def test_the_style_sheet_has_a_rule_for_every_colour_of_text() -> None:
    for colour in (theme.INK, *theme.TEXT_COLOURS):
        for written in (colour, sheet.rgb(colour)):
            assert f'text[style*="{written}"]' in theme.STYLE
    assert sheet.rgb("#0072B2") == "rgb(0, 114, 178)"
    assert theme.STYLE.startswith("<style>") and theme.STYLE.endswith("</style>")


def test_nothing_moves_where_less_motion_is_asked_for() -> None:
    quiet = theme.STYLE.partition("@media (prefers-reduced-motion: reduce)")[2]
    assert "transition: none !important" in quiet and "animation: none !important" in quiet
    assert ".lab-quiet { display: block; }" in quiet


@pytest.mark.parametrize("sight", SIGHTS)
def test_sides_are_told_apart_without_one_kind_of_cone(sight: str) -> None:
    seen = {key: lab(np.array(SIGHTS[sight]) @ linear(c)) for key, c in theme.SIDES.items()}
    assert np.linalg.norm(seen["A"] - seen["B"]) > 40
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_nothing_is_told_by_colour_alone() -> None:
    looks = [theme.request_look(n) for n in range(40)]
    assert len({(look.colour, look.pattern) for look in looks}) == 40
    for table in (theme.STATES, theme.STAGES):
        assert len({(look.colour, look.pattern) for look in table.values()}) == len(table)
    assert len(set(theme.SIDE_SYMBOLS.values())) == len(theme.SIDES)
    assert len(set(theme.SIDE_PATTERNS.values())) == len(theme.SIDES)
    assert len(set(theme.DASHES.values())) == 3


def test_letters_are_themselves_and_names_take_what_is_left() -> None:
    assert theme.side_keys(["off", "on"]) == {"off": "A", "on": "B"}
    assert theme.side_keys(["B", "A"]) == {"B": "B", "A": "A"}
    assert theme.side_keys(["B", "other"]) == {"B": "B", "other": "A"}
    assert len(theme.side_colours([f"side {n}" for n in range(6)])) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (theme.format_seconds(0), "0 s"),
        (theme.format_seconds(0.0123), "12.3 ms"),
        (theme.format_seconds(0.99996), "1 s"),
        (theme.format_seconds(4.2e-5), "42 µs"),
        (theme.format_seconds(1234.5), "1,234 s"),
        (theme.format_bytes(1), "1 byte"),
        (theme.format_bytes(999.6), "1 kB"),
        (theme.format_bytes(5_300_000), "5.3 MB"),
        (theme.format_flops(3.33e10), "33.3 GFLOP"),
        (theme.format_rate(1234.5), "1,234 tokens/s"),
        (theme.format_rate(9.999), "10 tokens/s"),
        (theme.format_ratio(2.5), "2.5x"),
        (theme.format_percent(0.0996), "10 %"),
        (theme.format_percent(0.004), "0.4 %"),
        (theme.format_count(1, "step"), "1 step"),
        (theme.format_count(2000, "entry", "entries"), "2,000 entries"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text: str, expected: str) -> None:
    assert text == expected


def test_headless_is_the_environments_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("1", True), ("0", False), ("", False), ("yes", True)):
        monkeypatch.setenv("MINSERVE_HEADLESS", value)
        assert theme.headless() is expected


def test_panels_leave_room_for_their_titles() -> None:
    plain, panels = theme.layout("t"), theme.layout("t", panels=True, margin={"l": 3})
    assert panels["margin"]["t"] > plain["margin"]["t"]  # type: ignore[index]
    assert panels["margin"]["l"] == 3  # type: ignore[index]
    assert panels["legend"]["y"] > plain["legend"]["y"]  # type: ignore[index]


def test_a_cell_that_imports_pandas_disturbs_no_drawing():
    # plotly asks for `pandas.Series` while another thread's import of pandas is half done.
    code = """
import threading
from widgets import theme
import plotly.graph_objects as go

stop, failed = threading.Event(), []

def draw():
    while not stop.is_set():
        try:
            go.Scatter(x=[1, 2], y=[3, 4])
        except AttributeError as error:
            failed.append(str(error))

drawing = threading.Thread(target=draw)
drawing.start()
import pandas
stop.set()
drawing.join()
assert not failed, failed[0]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
