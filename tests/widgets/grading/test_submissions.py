"""Whose work it is, for which exercise, and which of a notebook's code is taken."""

from __future__ import annotations

import json
import os

import pytest

from widgets.grading.code import module_of
from widgets.grading.submissions import collect

KNOWN = ("45a_admission", "45c_order", "47_ladder")


def notebook(*cells, check="45c_order"):
    sources = [*cells, f'from widgets.panels import Check\ncheck = Check("{check}")\ncheck.run()']
    return json.dumps(
        {"cells": [{"cell_type": "code", "source": source} for source in sources], "nbformat": 4}
    )


def written(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return collect(folder, KNOWN)


def test_a_folder_is_a_student_and_so_is_a_file(tmp_path):
    rank = "def rank(job):\n    return 1\n"
    found = written(
        tmp_path,
        {
            "ann/week 1/45c_preemption.ipynb": notebook(rank),
            "bob/45c_order.py": rank,
            "carl_45c_order.py": rank,
            "dora-47.py": "def ladder(rows, most): ...",
            "47.py": "def ladder(rows, most): ...",
            ".ipynb_checkpoints/ann.ipynb": notebook(rank),
            "notes.txt": "nothing",
        },
    )
    assert [(one.student, one.exercise) for one in found] == [
        ("47", "47_ladder"),
        ("ann", "45c_order"),
        ("bob", "45c_order"),
        ("carl", "45c_order"),
        ("dora", "47_ladder"),
    ]
    assert not any(one.problem for one in found)


def test_what_cannot_be_read_is_a_problem_of_that_file_alone(tmp_path):
    found = written(
        tmp_path,
        {
            "ann/a.ipynb": "{",
            "ann/b.ipynb": "[]",
            "ann/c.ipynb": notebook("x = 1", check="unknown"),
            "bob/45c.py": "def rank(job):\n    return 1\n",
        },
    )
    (tmp_path / "ann" / "d.ipynb").write_bytes(b"\xff\xfe")
    found = collect(tmp_path, KNOWN)
    problems = {one.path.name: one.problem for one in found}
    assert "cannot be read" in problems["a.ipynb"] and "cannot be read" in problems["d.ipynb"]
    assert "not a notebook" in problems["b.ipynb"]
    assert "45a_admission, 45c_order, 47_ladder" in problems["c.ipynb"]
    assert problems["45c.py"] == ""


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: None, FileNotFoundError, "there is no folder"),
        (lambda path: path.write_text(""), NotADirectoryError, "is a file"),
        (lambda path: path.mkdir(), ValueError, "no notebooks"),
    ],
)
def test_a_folder_that_is_none_is_refused_in_a_sentence(tmp_path, make, error, words):
    make(tmp_path / "class")
    with pytest.raises(error, match=words):
        collect(tmp_path / "class", KNOWN)


def test_definitions_imports_and_constants_are_taken_and_nothing_that_runs():
    text = module_of(
        [
            "%matplotlib inline\nimport math\nprint('never')\nLIMIT = 3",
            "%%bash\ndef not_python(): fi",
            "llm = LLM('zoo/base')\n@cached\ndef rank(job):\n    return LIMIT\nrank(1)",
            "best = rank\nkey = lambda job: job.left\ntable = [f(x) for x in y]",
            "this is text",
        ]
    )
    kept = [line for line in text.splitlines() if line]
    assert kept == [
        "import math",
        "LIMIT = 3",
        "@cached",
        "def rank(job):",
        "    return LIMIT",
        "best = rank",
        "key = lambda job: job.left",
    ]


def test_a_definition_that_does_not_compile_stays_so_that_its_error_is_told():
    text = module_of(["def rank(job)\n    return 1"])
    with pytest.raises(SyntaxError):
        compile(text, "module", "exec")


@pytest.mark.parametrize(
    ("cell", "call", "value"),
    [
        ("def f():\n    return (\n        17\n        % 5\n    )", "f()", 2),
        ("%%time\ndef f():\n    return 1", "f()", 1),
        ("%matplotlib inline\n!ls\nf?\ndef f():\n    return 1", "f()", 1),
        ("LIMIT = 2 * 8\nINF = -float('inf')\nBIG = 2**31 - LIMIT", "BIG", 2**31 - 16),
        ("import math\nHUGE = math.inf\nSQUARES = [i * i for i in range(3)]", "SQUARES", [0, 1, 4]),
        ("LIMIT = 3; run()\nBOTH = (LIMIT, LIMIT)", "BOTH", (3, 3)),
        ("side = compare()\nalias = side\nused = side.steps\nx: int = 4", "x", 4),
        ("try:\n    import nothing_\nexcept ImportError:\n    nothing_ = 7", "nothing_", 7),
        ("if True:\n    def f():\n        return 5", "f()", 5),
        ("if run():\n    x = 1\nif True:\n    run()\ny = 2", "y", 2),
        ("def made():\n    run()\nx = made()\ny = 1", "y", 1),
        ("if True:\n    x = 1\n    y = x", "y", 1),
        ("y = 1\nx = await y\nz = 3", "z", 3),
        ("text = 'a\x0cb\u2028c'\ndef f():\n    return text", "f()", "a\x0cb\u2028c"),
        ("def f():\r\n    return 1\r\nrun()", "f()", 1),
        ("é = 'é'; run('é'); x = 'ö'", "x", "ö"),
        ("__import__('os').environ\nrank = lambda job: job", "rank(3)", 3),
    ],
)
def test_what_counts_in_the_notebook_counts_here_and_nothing_is_run(cell, call, value):
    def run(*words):
        raise AssertionError("a run of the notebook was kept")

    names = {"run": run, "compare": run, "__name__": "submission"}
    exec(compile(module_of([cell]), "module", "exec"), names)
    assert eval(call, names) == value


def test_a_cell_may_begin_with_a_future_import_and_is_not_the_first():
    text = module_of(["import os", "from __future__ import annotations\ndef f(x: Later): ..."])
    compile(text, "module", "exec")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("45c.py", b"\xef\xbb\xbfdef rank(job):\n    return 'e'\n"),
        ("45c.PY", b"def rank(job):\n    return 'e'\n"),
        ("45c.py", b"# -*- coding: latin-1 -*-\ndef rank(job):\n    return '\xe9'\n"),
        ("45c.ipynb", b"\xef\xbb\xbf" + notebook("def rank(job): return 'e'").encode()),
    ],
)
def test_encodings_of_other_editors_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (found,) = collect(tmp_path, KNOWN)
    assert (found.problem, found.exercise) == ("", "45c_order")
    assert found.source.startswith(("def rank", "\n\ndef rank"))


def test_every_student_is_answered_for(tmp_path):
    rank = "def rank(job):\n    return 1\n"
    written(tmp_path, {"ann/45c.py": rank, "bob/work.zip": "", "bob/.x/45c.py": rank})
    (tmp_path / "cyd").mkdir()
    (tmp_path / "cyd" / "45c.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "dan").symlink_to(tmp_path / "ann")
    os.mkfifo(tmp_path / "eve_45c.py")
    (tmp_path / "fay").mkdir(mode=0o000)
    problems = {one.student: one.problem for one in collect(tmp_path, KNOWN)}
    assert problems.keys() >= {"ann", "bob", "cyd", "dan", "eve", "fay"}
    assert problems["ann"] == problems["dan"] == ""
    assert "no notebook" in problems["bob"] and "no regular file" in problems["eve"]
    assert "cannot be read" in problems["cyd"]
    assert os.geteuid() == 0 or "cannot be read" in problems["fay"]


def test_the_name_of_a_chapter_is_no_part_of_a_student(tmp_path):
    files = ["ann_45c_preemption", "bob-45c_order", "45c_preemption_cyd", "45c_preemption"]
    for name in files:
        (tmp_path / f"{name}.py").write_text("def rank(job):\n    return 1\n")
    found = collect(tmp_path, KNOWN, ["45c_preemption", "00_start_here"])
    assert {one.student for one in found} == {"ann", "bob", "cyd", "45c_preemption"}
    assert {one.exercise for one in found} == {"45c_order"}


def test_a_cell_of_words_is_left_out():
    assert module_of(["these are my notes", "x = 1"]) == "x = 1\n"


def test_each_file_is_one_submission_for_each_exercise_in_the_order_of_students(
    tmp_path, monkeypatch
):
    twice = notebook("check = Check('45c_order')", "def rank(job): return 1")
    found = written(
        tmp_path,
        {
            "bob/x.ipynb": twice,
            "45c_zoe.py": "def rank(job): return 1",
            "cyd/my45c_order2.py": "def rank(job): return 1",
        },
    )
    assert [(one.student, one.exercise) for one in found] == [
        ("bob", "45c_order"),
        ("cyd", "45c_order"),
        ("zoe", "45c_order"),
    ]
    monkeypatch.setattr("widgets.grading.submissions.MOST_BYTES", len(twice) - 1)
    problems = {one.student: one.problem for one in collect(tmp_path, KNOWN)}
    assert "the file has more than" in problems["bob"] and not problems["zoe"]
