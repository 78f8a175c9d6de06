"""The benchmark of two checkouts: both sides run, tokens are compared. Judges no speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minserve.__main__ import main
from minserve.bench.commits.child import Checkout, CheckoutError
from minserve.bench.commits.command import HERE, first_difference, median_interval
from minserve.bench.commits.side import CASES


def test_a_checkout_beside_itself_has_equal_tokens_in_every_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    words = ["--old", str(HERE), "--pairs", "2", "--work", "0.01", "--json", str(path)]
    assert main(["bench", "commits", *words, "--no-progress"]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [case["case"] for case in result["cases"]] == list(CASES)
    measured = [case for case in result["cases"] if "error" not in case]
    assert len(measured) >= len(CASES) - 1  # native operators need a compiler
    for case in measured:
        assert case["difference"] is None
        assert case["units"]["old"] == case["units"]["new"] > 0
        assert len(case["ratio"]["values"]) == 2
        assert case["ratio"]["low"] <= case["ratio"]["median"] <= case["ratio"]["high"]
    assert result["machine"] and result["versions"] and result["checkouts"]["old"]["path"]
    assert "equal" in capsys.readouterr().err


def test_a_difference_is_said_where_it_begins() -> None:
    assert first_difference([[1, 2], [3]], [[1, 2], [3]]) is None
    assert first_difference([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == "request 1 from token 1 on"
    assert first_difference([[1]], [[1, 2]]) == "request 0 from token 1 on"
    assert first_difference([[1]], []) == "1 and 0 requests"


def test_the_interval_of_the_median_holds_it_and_repeats() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 1.02, 0.97, 1.3]
    low, high = median_interval(values, seed=3)
    assert 0.9 <= low <= 1.02 <= high <= 1.3
    assert (low, high) == median_interval(values, seed=3)
    assert median_interval([2.0] * 5, seed=0) == (2.0, 2.0)


def test_a_checkout_that_does_not_start_says_why(tmp_path: Path) -> None:
    package = tmp_path / "minserve"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('half a checkout')\n")
    with pytest.raises(CheckoutError, match="half a checkout"):
        Checkout(tmp_path)


def test_a_folder_without_minserve_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "commits", "--old", str(tmp_path)]) != 0
    assert "is no checkout" in capsys.readouterr().err
