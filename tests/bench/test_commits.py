"""The benchmark of two checkouts: both sides run, tokens are compared. Judges no speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minserve.__main__ import main
from minserve.bench.commits import command
from minserve.bench.commits.child import Checkout, CheckoutError
from minserve.bench.commits.command import HERE, first_difference, median_interval
from minserve.bench.commits.side import CASES


def test_a_checkout_beside_itself_has_equal_tokens_in_every_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    words = ["--old", str(HERE), "--pairs", "2", "--work", "0.01", "--json", str(path)]
    code = main(["bench", "commits", *words, "--no-progress"])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [case["case"] for case in result["cases"]] == list(CASES)
    measured = [case for case in result["cases"] if "error" not in case]
    assert len(measured) >= len(CASES) - 1  # native operators need a compiler
    assert code == (len(measured) < len(CASES))
    for case in measured:
        assert case["difference"] is None
        assert case["units"]["old"] == case["units"]["new"] > 0
        assert len(case["ratio"]["values"]) == 2
        assert case["ratio"]["low"] is case["ratio"]["high"] is None  # too few pairs
    assert result["machine"] and result["versions"] and result["checkouts"]["old"]["path"]
    told = capsys.readouterr().err
    assert "equal" in told and "too few pairs" in told


FAST = ["--work", "0.01", "--only", "virtual, fcfs", "--no-progress"]


def checkout(folder: Path, more: str) -> Path:
    """A copy of this checkout by links, with more code in its `minserve/__init__.py`."""
    package = folder / "minserve"
    package.mkdir()
    for entry in (HERE / "minserve").iterdir():
        if entry.name != "__init__.py":
            (package / entry.name).symlink_to(entry)
    text = (HERE / "minserve" / "__init__.py").read_text(encoding="utf-8")
    (package / "__init__.py").write_text(text + "\n" + more, encoding="utf-8")
    return folder


def test_five_pairs_give_an_interval(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["--old", str(HERE), "--pairs", "5", "--json", str(path), *FAST]
    assert main(["bench", "commits", *words]) == 0
    [case] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert case["ratio"]["low"] <= case["ratio"]["median"] <= case["ratio"]["high"]


def test_a_checkout_may_print_lines_and_half_lines(tmp_path: Path) -> None:
    folder = checkout(tmp_path, "print('{}\\nwelcome', end='')")
    side = Checkout(folder)
    try:
        assert side.run("virtual, fcfs", 0.01)["units"] > 0
    finally:
        side.close()


class Answers:
    """A checkout with answers of its own."""

    commit = None

    def __init__(self, folder: Path, tokens: list[list[int]] | None) -> None:
        self.folder, self.tokens = folder, tokens

    def run(self, case: str, work: float, tokens: bool = False) -> dict[str, Any]:
        if self.tokens is None:
            raise CheckoutError(f"{case} is not supported")
        return {"cpu_s": 1.0, "units": 2, "tokens": self.tokens}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [([[1, 3]], "DIFFER: request 0 from token 1 on"), (None, "virtual, fcfs is not supported")],
)
def test_a_failed_case_or_other_tokens_end_with_code_1_after_the_report(
    tokens: list[list[int]] | None,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = iter(([[1, 2]], tokens))
    monkeypatch.setattr(command, "Checkout", lambda folder: Answers(folder, next(answers)))
    path = tmp_path / "result.json"
    assert main(["bench", "commits", "--old", str(HERE), "--json", str(path), *FAST]) == 1
    assert len(json.loads(path.read_text(encoding="utf-8"))["cases"]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--pairs", "0"], "--pairs 0: expected at least 1"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--work", "0"], "--work 0.0: expected a finite number above 0"),
        (["--work", "nan"], "--work nan: expected a finite number above 0"),
        (["--work", "inf"], "--work inf: expected a finite number above 0"),
        (["--only", "virtual"], "--only 'virtual': there are 'virtual, fcfs', "),
    ],
)
def test_arguments_are_checked_before_anything_starts(
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start(folder: Path) -> None:
        raise AssertionError("a checkout was started")

    monkeypatch.setattr(command, "Checkout", start)
    assert main(["bench", "commits", "--old", str(HERE), *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/nowhere/at/all.json", "/nowhere/at is no directory"), ("/", "it is a directory")],
)
def test_a_result_file_is_checked_before_anything_starts(path, reason, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "Checkout", None)
    assert main(["bench", "commits", "--old", str(HERE), "--json", path]) == 1
    assert capsys.readouterr().err == f"minserve: --json {path} cannot be written: {reason}\n"


def test_help_says_what_is_compared_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "commits", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for words in ("CPU time", "on one thread", "tokens", "this Python and its packages", "quiet"):
        assert words in told
    for case in CASES:
        assert repr(case) in told


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


def test_a_checkout_that_hangs_ends_with_a_sentence(tmp_path: Path) -> None:
    package = tmp_path / "minserve"
    package.mkdir()
    (package / "__init__.py").write_text("import time\nwhile True: print(time.sleep(0.05))\n")
    with pytest.raises(CheckoutError, match=r"no answer within 0\.5 s: its process hangs"):
        Checkout(tmp_path, timeout_s=0.5)


def test_a_case_that_hangs_ends_it_and_the_next_cases_too(tmp_path: Path) -> None:
    (tmp_path / "minserve").mkdir()
    (tmp_path / "minserve" / "__init__.py").write_text(
        "def __getattr__(name):\n    import time; time.sleep(60)\n"
    )
    side = Checkout(tmp_path)
    side._timeout_s = 0.2
    try:
        for _ in range(2):
            with pytest.raises(CheckoutError, match=r"no answer within 0\.2 s"):
                side.run("virtual, fcfs", 0.01)
    finally:
        side.close()


def test_a_folder_without_minserve_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "commits", "--old", str(tmp_path)]) != 0
    assert "is no checkout" in capsys.readouterr().err
