"""Each piece of work in a process of its own: marks, reasons, limits, and unhurt neighbours."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time

import pytest

from minserve.__main__ import main
from widgets.grading.grade import Limits, grade
from widgets.grading.submissions import Submission
from widgets.notebooks.checkout import labs_directory
from widgets.panels.exercises.exercise import load_exercise

LABS = labs_directory()
RIGHT = (LABS / "solutions" / "45c_order.py").read_text()


def judged(source, tmp_path, seconds=60.0, memory_bytes=1 << 30, name="45c_order"):
    work = Submission("ann", name, tmp_path / "ann.py", source)
    limits = Limits(seconds, memory_bytes)
    (found,) = grade([work], LABS, seed=1, limits=limits, out_of=lambda name: 2.0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (LABS / "solutions").glob("*.py")))
def test_every_worked_solution_has_full_marks_for_cases_that_were_never_seen(name, tmp_path):
    source = (LABS / "solutions" / f"{name}.py").read_text()
    found = judged(source, tmp_path, name=name)
    worth = 1.0 + (load_exercise(name, LABS).score is not None)
    assert (found.status, found.points) == ("passed", pytest.approx(worth)), found.said


@pytest.mark.slow
def test_accidents_are_marks_of_zero_with_their_reason(tmp_path):
    for source, words in {
        "def rank(job):\n    ...": "Not attempted",
        "def rank(job):\n    return 1": "",
        "def rank(job)\n    return 1": "syntax error",
        "import no_such_library\ndef rank(job):\n    return 1": "no_such_library",
        "def order(job):\n    return 1": "not defined",
        "def rank(job):\n    return bytearray(1 << 40)": "MemoryError",
        "def rank(job):\n    import os\n    os._exit(0)": "ended before there was a result",
        "def rank(job):\n    while True:\n        pass": "longer than",
    }.items():
        found = judged(source, tmp_path)
        assert found.points == 0 and found.status in ("failed", "not attempted")
        assert any(words in line for line in found.said), (source, found.said)


@pytest.mark.slow
def test_what_never_ends_is_ended_with_all_that_it_started(tmp_path):
    # Sleep is no time of the solution's own, and a child outlives its parent unless it is ended.
    mark = f"minserve-grade-test-{time.time_ns()}"
    source = (
        "import subprocess, sys, time\n"
        "def rank(job):\n"
        f"    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', '{mark}'])\n"
        "    time.sleep(99)\n"
    )
    found = judged(source, tmp_path, seconds=12.0)
    assert found.status == "failed" and "longer than" in found.said[0]
    if sys.platform == "linux":
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False)
        assert mark not in listed.stdout


@pytest.mark.slow
def test_a_class_by_the_command_line(tmp_path, capfd):
    work = tmp_path / "class"
    (work / "ann").mkdir(parents=True)
    (work / "ann" / "45c_order.py").write_text(RIGHT)
    (work / "ann" / "45c_order_first_try.py").write_text("def rank(job):\n    return 1\n")
    (work / "=bob_45c_order.py").write_text("def rank(job):\n    return -job.written\n")
    table = tmp_path / "marks.csv"
    assert main(["lab", "grade", str(work), "--json", "--csv", str(table)]) == 0
    said = json.loads(capfd.readouterr().out)
    marks = {(one["student"], one["file"][-12:]): one["points"] for one in said["grades"]}
    assert said["seed"] == 0 and marks[("ann", "45c_order.py")] == 2.0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 3 and any(row["student"] == "'=bob" for row in rows)
    assert main(["lab", "grade", str(work), "--exercise", "45c_order"]) == 0
    out = capfd.readouterr().out
    assert "ann   2.00 of 2 points" in out, "the best of a student's files counts"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder nowhere"),
        ([".", "--exercise", "99_none"], "there is no exercise '99_none'"),
        ([".", "--seconds", "0"], "must be above 0"),
    ],
)
def test_bad_use_is_a_sentence_and_ends_with_two(arguments, words, tmp_path, monkeypatch, capsys):
    from widgets.grading.__main__ import main as grading

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("x = 1")
    assert grading(arguments) == 2
    assert words in capsys.readouterr().err


def test_another_seed_draws_other_cases_and_the_same_seed_the_same():
    from dataclasses import replace

    exercise = load_exercise("43b_pages_to_load", LABS)

    def drawn(seed):
        seen = []

        def note(offer):
            seen.append(str(offer))
            return 0

        for case in replace(exercise, seed=seed).drawn_cases():
            with pytest.raises(Exception):  # noqa: B017
                case.run(note)
                raise ValueError("right by chance")
        return seen

    assert drawn(1) == drawn(1) and drawn(1) != drawn(2) and drawn(None) != drawn(1)
