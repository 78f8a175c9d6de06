"""Bad luck while a class is graded: what was graded is kept, and no student pays for it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from widgets.grading import __main__ as command
from widgets.grading import grade as grading
from widgets.grading import one
from widgets.grading.grade import Grade, Limits, grade
from widgets.grading.submissions import Submission
from widgets.notebooks.checkout import labs_directory
from widgets.panels.exercises.exercise import Score
from widgets.panels.exercises.judging import Report

LABS = labs_directory()
SOUND = {"status": "passed", "points": 1.0, "misconception": "", "said": ["fine"]}


def work(name="ann", source="def rank(job):\n    return 1\n"):
    return Submission(name, "45c_order", Path(f"{name}.py"), source)


def graded(*works, seconds=60.0):
    limits = Limits(seconds, 1 << 30)
    return list(grade(works, LABS, seed=1, limits=limits, out_of=lambda name: 2.0))


def leaving(monkeypatch, result, *, started=True, problem=""):
    """Processes that leave this text as their result, without starting any."""

    def run(job, path, errors, limits):
        if started:
            path.with_name(one.STARTED).touch()
        if result is not None:
            path.write_text(result)
        errors.write(b"RuntimeError: no compiler\n")
        return problem

    monkeypatch.setattr(grading, "_run", run)


@pytest.mark.parametrize(
    "result",
    [
        None,
        "",
        "[" * 100_000,
        "[1]",
        "{}",
        json.dumps(SOUND | {"points": "abc"}),
        json.dumps(SOUND | {"points": float("nan")}),
        json.dumps(SOUND | {"said": 5}),
        json.dumps(SOUND | {"said": [5]}),
        json.dumps(SOUND | {"status": "not graded"}),
        json.dumps(SOUND | {"misconception": None}),
    ],
)
def test_a_result_that_is_none_is_a_mark_of_zero_and_the_next_is_graded(monkeypatch, result):
    leaving(monkeypatch, result)
    first, second = graded(work("ann"), work("bob"))
    assert (first.status, first.points) == (second.status, second.points) == ("failed", 0.0)
    assert "ended before there was a result: RuntimeError: no compiler" in first.said[0]


def test_no_result_is_worth_more_than_the_exercise(monkeypatch):
    leaving(monkeypatch, json.dumps(SOUND | {"points": 99.0}))
    (found,) = graded(work())
    assert (found.status, found.points, found.said) == ("passed", 2.0, ("fine",))


def test_a_result_after_the_time_is_none(monkeypatch):
    leaving(monkeypatch, json.dumps(SOUND), problem="its process took longer than 1 s")
    (found,) = graded(work())
    assert (found.status, found.points) == ("failed", 0.0) and "took longer" in found.said[0]


@pytest.mark.parametrize("problem", ["", "its process took longer than 1 s"])
def test_what_fails_before_the_students_code_is_no_mark(monkeypatch, problem):
    leaving(monkeypatch, None, started=False, problem=problem)
    (found,) = graded(work())
    assert found.status == "not graded"
    assert (problem or "no compiler") in found.said[0]


def test_work_that_removes_its_own_folder_has_begun(monkeypatch):
    monkeypatch.setattr(
        grading, "_run", lambda job, *others: shutil.rmtree(job.parent) or "was too slow"
    )
    (found,) = graded(work())
    assert (found.status, found.said) == ("failed", ("was too slow",))


def test_the_process_judges_with_the_seed_and_begins_when_it_says_so(monkeypatch, tmp_path):
    started, seen = tmp_path / "started", []
    (tmp_path / "work.py").write_text(
        f"import os\nassert os.path.exists({str(started)!r})\nrank = 1\n"
    )

    def check(solution, exercise, worked):
        seen.append((solution, exercise.seed))
        return Report("passed", "all", score=Score(1.5, "quick"))

    monkeypatch.setattr(one, "check", check)
    monkeypatch.setattr(one, "limit_memory", lambda more: not started.exists())
    job = {"exercise": "45c_order", "labs": str(LABS), "module": str(tmp_path / "work.py")}
    found = one.judge(job | {"seed": 7, "memory_bytes": 1}, started)
    assert seen == [(1, 7)] and found["memory_limited"] is True
    assert found["points"] == 2.0, "better than the worked solution counts as full marks"


def test_a_full_disk_is_no_mark_and_the_next_is_tried(monkeypatch):
    calls = []

    def full(*arguments):
        calls.append(arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grading, "_run", full)
    found = graded(work("ann"), work("bob"))
    assert [each.status for each in found] == ["not graded"] * 2 and len(calls) == 2
    assert "No space left" in found[0].said[0]


def test_a_limit_of_the_shell_is_kept():
    resource = pytest.importorskip("resource")
    code = (
        "import resource; from widgets.grading.one import limit_memory\n"
        "hard = 1 << 40\n"
        "resource.setrlimit(resource.RLIMIT_AS, (hard, hard))\n"
        "assert limit_memory(1 << 45)\n"
        "print(*resource.getrlimit(resource.RLIMIT_AS))\n"
        "assert limit_memory(1 << 30)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[1] < 1 << 39)"
    )
    if not Path("/proc/self/statm").exists() or resource.getrlimit(resource.RLIMIT_AS)[1] != -1:
        pytest.skip("needs /proc and no limit yet")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(1 << 40), str(1 << 40), "True"], done.stderr


@pytest.mark.slow
def test_what_a_right_solution_leaves_behind_costs_no_marks(capfd):
    left = (
        "import atexit, threading, time\n"
        "threading.Thread(target=time.sleep, args=(300,)).start()\n"
        "atexit.register(time.sleep, 300)\n"
        "print('said')\n"
    )
    right = (LABS / "solutions" / "45c_order.py").read_text()
    (found,) = graded(work(source=left + right), seconds=90.0)
    assert (found.status, found.points) == ("passed", 2.0), found.said
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_an_error_that_cannot_say_itself_is_told():
    source = "class B(BaseException):\n    def __str__(self): raise self\nclass C:\n    raise B\n"
    (found,) = graded(work(source=source))
    assert "could not be loaded: B: <without a text: B>" in found.said[0]


def a_class(tmp_path, monkeypatch, *, names=("ann", "bob"), said="fine", stop_after=None):
    """A class in a folder, and a grader that judges all of it as passed, without processes."""
    for name in names:
        path = os.fsencode(tmp_path / "class") + b"/" + name.encode(errors="surrogateescape")
        os.makedirs(path)
        Path(os.fsdecode(path), "45c_order.py").write_text("def rank(job):\n    return 1\n")

    def judged(found, labs, **options):
        for number, each in enumerate(found):
            if number == stop_after:
                raise KeyboardInterrupt
            yield Grade(
                each.student, each.exercise, str(each.path), "failed", 1.0, 2.0, "", (said,)
            )

    monkeypatch.setattr(command, "grade", judged)
    return str(tmp_path / "class")


def test_what_was_graded_before_ctrl_c_is_reported(tmp_path, monkeypatch, capsys):
    folder = a_class(tmp_path, monkeypatch, names=("ann", "bob", "cyd"), stop_after=2)
    before = signal.getsignal(signal.SIGINT)
    assert command.main([folder, "--csv", str(tmp_path / "t.csv")]) == 130
    said = capsys.readouterr()
    assert "bob  1.00 of 2 points" in said.out and "cyd" not in said.out
    assert said.err.splitlines()[-1] == "minserve: interrupted; 2 of 3 were graded"
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["student"] for row in rows] == ["ann", "bob"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_lose_the_table(tmp_path, monkeypatch):
    folder = a_class(tmp_path, monkeypatch)

    def interrupted(found, labs, **options):
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(command, "grade", interrupted)
    write = command._write_csv
    monkeypatch.setattr(
        command, "_write_csv", lambda *a: (signal.raise_signal(signal.SIGINT), write(*a))
    )
    assert command.main([folder, "--csv", str(tmp_path / "t.csv")]) == 130
    assert (tmp_path / "t.csv").exists()


def test_names_and_sayings_that_are_no_text_for_a_terminal_are_shown(tmp_path, monkeypatch, capsys):
    said = "\x1b[31m red \n two \ud800"
    folder = a_class(tmp_path, monkeypatch, names=("b\udcffb",), said=said)
    assert command.main([folder, "--csv", str(tmp_path / "t.csv")]) == 0
    out = capsys.readouterr().out
    assert "b\\udcffb  1.00 of 2 points" in out and "\\x1b[31m red \\n two \\ud800\n" in out
    assert "b\\udcffb" in (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert command.main([folder, "--json"]) == 0
    (one_grade,) = json.loads(capsys.readouterr().out)["grades"]
    assert one_grade["student"] == "b\udcffb" and one_grade["said"] == [said]


def test_a_narrow_stdout_takes_the_table(tmp_path, monkeypatch):
    folder = a_class(tmp_path, monkeypatch, said="“quoted”")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert command.main([folder]) == 0
    assert b"\\u201cquoted\\u201d" in narrow.buffer.getvalue()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_table_is_a_formula(tmp_path, monkeypatch, start):
    folder = a_class(tmp_path, monkeypatch, said=f"{start}1+1")
    assert command.main([folder, "--csv", str(tmp_path / "t.csv")]) == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row["said"] for row in csv.DictReader(file)] == [f"'{start}1+1"] * 2


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--csv", "."], 1, "--csv . cannot be written: it is a directory"),
        (["--csv", "no/such.csv"], 1, "--csv no/such.csv cannot be written: no is no directory"),
        (["--seconds", "nan"], 2, "must be above 0"),
        (["--seconds", "inf"], 2, "at most"),
        (["--memory-mb", "0"], 2, "must be above 0"),
        (["--memory-mb", str(1 << 60)], 2, "at most"),
        (["--exercise", "43a_block_table"], 2, "is for 43a_block_table"),
        (["--seed", "x"], 2, "expected an integer"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_graded(
    tmp_path, monkeypatch, capsys, more, code, words
):
    folder = a_class(tmp_path, monkeypatch)
    monkeypatch.setattr(command, "grade", None)
    monkeypatch.chdir(tmp_path)
    try:
        assert command.main([folder, *more]) == code
    except SystemExit as ended:
        assert ended.code == code
    said = capsys.readouterr().err
    assert said.startswith("minserve: ") and words in said and "Traceback" not in said


def test_a_file_that_cannot_be_read_may_be_the_exercise_that_is_asked_for(
    tmp_path, monkeypatch, capsys
):
    folder = a_class(tmp_path, monkeypatch)
    (tmp_path / "class" / "ann" / "x.ipynb").write_text("{")
    assert command.main([folder, "--exercise", "45c_order"]) == 0
    assert "x.ipynb" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the group", "the command alone"])
def test_ctrl_c_in_a_terminal_keeps_the_table_and_ends_the_students_process(tmp_path, whom):
    mark = f"minserve-grade-test-{time.time_ns()}"
    (tmp_path / "class").mkdir()
    begun = tmp_path / "begun"
    (tmp_path / "class" / "ann_45c.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "def rank(job):\n"
        f"    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', '{mark}'])\n"
        f"    pathlib.Path({str(begun)!r}).touch()\n"
        "    time.sleep(20)\n"
    )
    words = ["lab", "grade", str(tmp_path / "class"), "--csv", str(tmp_path / "t.csv")]
    process = subprocess.Popen(
        [sys.executable, "-m", "minserve", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(1200):
        if begun.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    (os.killpg if whom == "the group" else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert "interrupted; 0 of 1 were graded" in said
    assert (tmp_path / "t.csv").read_text().startswith("student,exercise")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False)
    assert mark not in listed.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("pipe", "code"), [("| true", 141), ("> /dev/full", 1)])
def test_an_output_that_takes_nothing_is_a_sentence(tmp_path, pipe, code):
    if "full" in pipe and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "ann_45c.ipynb").write_text("{")
    line = f"{sys.executable} -m minserve lab grade {tmp_path} {pipe}; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == str(code) and "Traceback" not in done.stderr
