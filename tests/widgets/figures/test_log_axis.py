"""Logarithmic axes say their numbers as a reader would write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widgets.figures.log_axis import decimal, log_axis, log_ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 10.0, ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        (0.9, 2.1, ["1", "1.5", "2"]),
        (1.31, 1.58, ["1.4", "1.5"]),
        (64, 2000, ["100", "200", "500", "1,000", "2,000"]),
        (1e-6, 1.0, ["0.000001", "0.00001", "0.0001", "0.001", "0.01", "0.1", "1"]),
        (1.0, 1e6, ["1", "10", "100", "1,000", "10,000", "100,000", "1,000,000"]),
        (5.0, 5.0, ["5"]),
    ],
)
def test_ticks_are_round_decimals(low: float, high: float, expected: list[str]) -> None:
    values, texts = log_ticks(low, high)
    assert texts == expected
    assert [float(text.replace(",", "")) for text in texts] == values


@given(st.floats(1e-9, 1e9), st.floats(1.05, 1e9))
def test_every_axis_has_two_to_eight_labels_in_order(low: float, factor: float) -> None:
    values, texts = log_ticks(low, low * factor)
    assert 2 <= len(values) <= 8
    assert values == sorted(set(values))
    assert low * (1 - 1e-6) <= values[0] and values[-1] <= low * factor * (1 + 1e-6)
    for value, text in zip(values, texts, strict=True):
        assert "e" not in text and "µ" not in text
        assert float(text.replace(",", "")) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf)])
def test_an_axis_without_room_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        log_ticks(low, high)


def test_a_log_axis_holds_its_values_and_leaves_out_zero() -> None:
    axis = log_axis([0.0, 3.0, 400.0])
    low, high = axis["range"]
    assert 10**low < 3.0 and 10**high > 400.0
    assert axis["ticktext"] == ["5", "10", "20", "50", "100", "200", "500"]
    assert log_axis([0.0]) == {}


def test_a_number_is_written_without_exponent() -> None:
    assert [decimal(v) for v in (0.005, 0.3, 20, 1e6)] == ["0.005", "0.3", "20", "1,000,000"]
