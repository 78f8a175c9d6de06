"""The sample that `make test` runs is really drawn, repeats by its seed, and `--full` leaves it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sampled
from lossless import test_matrix as matrix

TESTS = Path(__file__).parent
SUITE = """
import os, pytest, sampled

@pytest.mark.full
def test_long():
    pass

mark = pytest.mark.sampled(4)

@pytest.mark.parametrize("n", [0, *(pytest.param(n, marks=mark) for n in range(1, 40))])
def test_cases(n):
    assert sampled.examples(100, 7) == (100 if sampled.full else 7)
"""


def cases(*names: str) -> dict[str, list[str]]:
    return {name: [f"{name}[{n}]" for n in range(100)] for name in names}


def test_as_many_as_asked_are_drawn_and_all_where_there_are_no_more() -> None:
    counts = {"one": 30, "two": 1000, "three": 0}
    found = sampled.drawn(cases(*counts), counts, 7)
    assert {name: sum(c.startswith(name) for c in found) for name in counts} == {
        "one": 30, "two": 100, "three": 0,
    }  # fmt: skip


def test_the_draw_is_the_seeds_whatever_else_is_collected_and_in_whatever_order() -> None:
    alone = sampled.drawn(cases("one"), {"one": 30}, 7)
    groups = cases("zero", "one")
    groups["one"].reverse()
    together = sampled.drawn(groups, {"zero": 3, "one": 30}, 7)
    assert alone == {case for case in together if case.startswith("one")}
    assert alone != sampled.drawn(cases("one"), {"one": 30}, 8)


def test_every_case_is_drawn_sooner_or_later() -> None:
    seen: set[str] = set()
    for seed in range(200):
        seen |= sampled.drawn(cases("one"), {"one": 10}, seed)
    assert len(seen) == 100


def test_the_matrix_runs_every_switch_alone_and_draws_its_pairs() -> None:
    (mark,) = [
        m for m in matrix.test_switches_change_no_token.pytestmark if m.args[0] == "switches"
    ]
    plain = [
        each for each in mark.args[1] if isinstance(each, tuple) and not hasattr(each, "marks")
    ]
    pairs = [each for each in mark.args[1] if hasattr(each, "marks")]
    assert plain == matrix.singles() and len(plain) == len(matrix.SWITCHES)
    assert [each.values[0] for each in pairs] == matrix.pairs()
    assert len(pairs) > matrix.DRAWN_PAIRS == 300
    for each in pairs:
        (drawn,) = each.marks
        assert drawn.name == "sampled" and drawn.args == (300,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of its own, under this one's rules."""
    found = tmp_path_factory.mktemp("suite")
    (found / "conftest.py").write_text('pytest_plugins = ["sampled"]\n')
    (found / "test_suite.py").write_text(SUITE)
    (found / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\n")
    return found


def ran(folder: Path, *options: str) -> tuple[set[str], str]:
    """The tests that passed, by name, and everything that was said."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MINSERVE_"))}
    done = subprocess.run(
        command, cwd=folder, env=kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"::(test_\w+(?:\[\d+\])?)", done.stdout)), done.stdout


def test_two_processes_draw_one_sample_whose_seed_is_said_and_repeats_it(folder: Path) -> None:
    first, said = ran(folder, "-p", "xdist", "-n", "2")
    assert len(first) == 5 and "test_cases[0]" in first and "test_long" not in first
    (seed,) = re.findall(r"repeat with --sample-seed (\d+)", said)
    again, _ = ran(folder, "--sample-seed", seed)
    assert again == first


def test_full_leaves_nothing_out(folder: Path) -> None:
    everything, said = ran(folder, "--full")
    assert len(everything) == 41 and "all of them" in said


def test_what_is_named_runs_in_any_case(folder: Path) -> None:
    named = ["test_suite.py::test_long", *(f"test_suite.py::test_cases[{n}]" for n in (8, 9))]
    assert len(ran(folder, *named)[0]) == 3
