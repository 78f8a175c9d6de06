"""The rule: rounds that agree and differ enough; no difference and no verdict are two things."""

from __future__ import annotations

import random

import pytest

from widgets.panels.comparison.verdict import judge

ONES = [1.0] * 5


def noisy(draw: random.Random, centre: float, spread: float, count: int) -> list[float]:
    return [centre * 2 ** draw.gauss(0.0, spread) for _ in range(count)]


@pytest.mark.parametrize(
    ("other", "better", "outcome", "direction"),
    [
        ([2.0, 1.9, 2.2, 2.1, 2.0], "higher", "better", "up"),
        ([2.0, 1.9, 2.2, 2.1, 2.0], "lower", "worse", "up"),
        ([0.5, 0.6, 0.4, 0.5, 0.5], "lower", "better", "down"),
        ([0.5, 0.6, 0.4, 0.5, 0.5], "higher", "worse", "down"),
        ([1.01, 0.99, 1.02, 1.0, 0.98], "higher", "same", "same"),
        ([1.02, 1.01, 1.02, 1.02, 1.01], "higher", "same", "same"),
        # One round against the others, and rounds all over the place: the machine is busy.
        ([2.0, 2.0, 0.9, 2.0, 2.0], "higher", "unclear", "same"),
        ([1.0, 0.7, 1.3, 1.0, 1.0], "higher", "unclear", "same"),
    ],
)
def test_faster_slower_or_no_difference(other, better, outcome, direction):
    verdict = judge(ONES, other, better)
    assert (verdict.outcome, verdict.direction) == (outcome, direction)
    assert verdict.decided == (outcome != "unclear")
    if outcome in ("better", "worse"):
        assert (verdict.gain > 1) == (outcome == "better")


def test_few_rounds_must_differ_by_more_and_two_say_nothing():
    assert judge(ONES[:3], [1.05, 1.06, 1.07], "higher").outcome == "same"
    assert judge(ONES[:3], [1.08, 1.2, 1.3], "higher").outcome == "unclear"
    assert judge(ONES[:3], [1.15, 1.16, 1.17], "higher").outcome == "better"
    assert judge(ONES[:2], [9.0, 9.0], "higher").outcome == "unclear"


def test_counts_and_virtual_times_need_one_pair_and_any_difference():
    assert judge([100.0], [99.0], "lower", exact=True).outcome == "better"
    assert judge([100.0], [100.0], "lower", exact=True).outcome == "same"
    assert judge([0.0], [0.0], "lower", exact=True).outcome == "same"


def test_off_against_off_is_never_faster_or_slower_on_a_noisy_machine():
    draw = random.Random(0)
    found = [
        judge(noisy(draw, 1.0, 0.08, 5), noisy(draw, 1.0, 0.08, 5), "higher").outcome
        for _ in range(400)
    ]
    assert found.count("same") + found.count("unclear") >= 0.97 * len(found)
    assert found.count("same") > 0.6 * len(found)


def test_half_as_much_again_is_found_on_a_noisy_machine():
    draw = random.Random(0)
    found = [
        judge(noisy(draw, 1.0, 0.08, 5), noisy(draw, 1.5, 0.08, 5), "higher").outcome
        for _ in range(400)
    ]
    assert found.count("better") >= 0.97 * len(found)


def test_what_is_no_ratio_is_refused():
    with pytest.raises(ValueError, match="positive"):
        judge([1.0], [0.0], "higher")
    with pytest.raises(ValueError):
        judge([1.0, 1.0], [1.0], "higher")
    with pytest.raises(ValueError):
        judge([], [], "higher")
