"""The benchmark of verification times the same rows as a chain and as a tree."""

from __future__ import annotations

import pytest

from minserve.__main__ import main
from minserve.bench.runs import verify
from minserve.draft import Draft


def test_every_kind_of_pass_is_timed_in_every_round() -> None:
    cost = verify.verification_cost("zoo/draft", rows=4, context=20, rounds=2)
    assert {"one row", "chain", "tree"} <= cost.seconds.keys()
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in cost.seconds.values())
    assert cost.times("one row").values == (1.0, 1.0)


def test_the_tree_branches_and_its_masks_are_its_branches() -> None:
    assert verify._bush(6) == Draft((0,) * 6, (-1, -1, 0, 0, 1, 1))
    assert verify._masks(verify._bush(3)).tolist() == [0b1, 0b11, 0b101, 0b1011]


def test_too_few_rows_to_branch_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 3"):
        verify.verification_cost("zoo/draft", rows=2)


def test_the_command_says_rows_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "zoo/draft", "--rows", "5", "--context", "16", "--repeats", "2"]
    assert main(["bench", "verify", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "chain" in printed and "5 row(s)" in printed and "times one row" in printed
