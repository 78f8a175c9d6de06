"""Exercises: a stub is green, the worked solution passes, wrong ideas meet their own messages, and
whatever a reader may type is answered with what happened."""

from __future__ import annotations

import ast
import inspect
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from labs.lint import chapters, read, source

from labs import fuzz
from widgets.figures.time.answers import answers
from widgets.panels.exercises.exercise import labs_directory, load_exercise, load_solution
from widgets.panels.exercises.judging import assert_sound, check
from widgets.panels.exercises.returns import ANYTHING

NAMES = sorted(path.stem for path in Path(labs_directory(), "exercises").glob("[0-9]*.py"))
CALLED = [name for name in NAMES if load_exercise(name).called]


@cache
def loaded(name):
    """Kept: the exercise of chapter 46 remembers what each kernel gave."""
    exercise = load_exercise(name)
    worked = load_solution(name, exercise)
    assert worked is not None
    return exercise, worked[0]


def stub(*arguments):
    """Nothing yet."""
    ...


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted(name):
    assert check(stub, load_exercise(name)).status == "not attempted"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_and_each_wrong_idea_is_named_and_naive_rules_score_less(name):
    exercise, solution = loaded(name)
    assert_sound(exercise, solution)
    report = check(solution, exercise)
    assert report.score is None or report.score.share == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_rule_has_its_picture_beside_the_worked_solutions(name):
    exercise, solution = loaded(name)
    picture = exercise.picture
    assert picture is not None
    wrong = [
        one
        for each in exercise.misconceptions
        for one in (each.written or each.solutions)
        if callable(one)
    ]
    drawn = [check(one, exercise, worked=solution).pictured for one in (solution, *wrong[:2])]
    assert drawn[0].yours == drawn[0].worked and len(drawn[0].yours) > 5
    assert any(each is not None and each.yours != each.worked for each in drawn[1:])
    figure = answers(
        picture.title, picture.x, picture.y, drawn[0].yours, drawn[0].worked, picture.at
    )
    assert "the same as the worked solution" in figure.takeaway
    assert len(figure.table) == len(drawn[0].yours)


@pytest.mark.parametrize("name", NAMES)
def test_the_chapter_gives_the_function_and_parameters_that_the_exercise_calls(name):
    exercise, solution = loaded(name)
    (notebook,) = [path for path in chapters() if path.name.startswith(name.split("_")[0] + "_")]
    cells = [source(cell) for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]
    assert any(f'Check("{name}")' in cell for cell in cells)
    stubs = [
        node
        for cell in cells
        for node in ast.parse(cell).body
        if isinstance(node, ast.FunctionDef) and node.name == exercise.function
    ]
    assert [[each.arg for each in node.args.args] for node in stubs] == [list(exercise.parameters)]
    assert tuple(inspect.signature(solution).parameters) == exercise.parameters
    assert (exercise.returns is ANYTHING) == (not exercise.called)


@pytest.mark.parametrize("name", CALLED)
def test_what_breaks_is_told_first_with_its_line_and_arguments_and_is_no_misconception(name):
    exercise, solution = loaded(name)
    for mistake, body in fuzz.broken(exercise).items():
        report = fuzz.quickly(fuzz.function(exercise, body.text, right=solution), exercise)
        told = report.told
        assert report.status == "failed" and report.misconception is None, mistake
        assert (told.kind, body.words in told.text) == (body.kind, True), f"{mistake}: {told}"
        assert f"`{exercise.function}({exercise.parameters[0]}=" in told.text, f"{mistake}: {told}"
        assert told.text in report.sentences()[0], "it is what the reader sees first"
        if body.kind == "time":
            assert len(report.failures) == 1 and "stopped early" in report.covered


@pytest.mark.parametrize("name", CALLED)
def test_an_answer_of_the_wrong_kind_is_told_as_that_and_is_no_misconception(name):
    exercise, _ = loaded(name)
    seen = 0
    for mistake, (text, words) in fuzz.VALUES.items():
        if not fuzz.refused(exercise, text):
            continue
        seen += 1
        report = fuzz.quickly(fuzz.function(exercise, f"return {text}"), exercise)
        told = report.told
        assert report.status == "failed" and report.misconception is None, mistake
        assert told.kind == "type" and words in told.text, f"{mistake}: {told}"
        assert f"`{exercise.function}({exercise.parameters[0]}=" in told.text
        assert len(str(report)) < 2500
    assert seen >= 6


SAME_AS = {
    ("01_admit", "constant"): "all",
    ("01_admit", "not right"): "reversed",
    ("44_longest_prefix", "constant"): "arrival",
    ("45a_admission", "constant"): "places",
    ("45b_chunk_size", "constant"): "fixed",
    ("45c_order", "constant"): "constant",
    ("45c_order", "-right"): "reversed",
}
"""(exercise, what is returned) -> the misconception that this is: it does the same everywhere."""
WITHIN_TOLERANCE = {("45b_chunk_size", "right - 1")}
"""What a case's stated tolerance lets pass."""


@pytest.mark.parametrize("name", CALLED)
def test_a_constant_fails_and_is_called_a_misconception_only_where_it_is_one(name):
    exercise, _ = loaded(name)
    for text, _ in fuzz.VALUES.values():
        if fuzz.refused(exercise, text):
            continue
        report = fuzz.quickly(fuzz.function(exercise, f"return {text}"), exercise)
        met = report.misconception.name if report.misconception else None
        assert report.status == "failed", text
        assert met == SAME_AS.get((name, "constant")), f"{text}: {report}"
        assert report.told.kind == "wrong" and len(str(report)) < 2500


@pytest.mark.parametrize("name", CALLED)
def test_an_answer_beside_the_right_one_fails_and_is_no_misconception(name):
    exercise, solution = loaded(name)
    for text in fuzz.OFF[exercise.returns]:
        body = f"right = solution({', '.join(exercise.parameters)})\nreturn {text}"
        report = fuzz.quickly(fuzz.function(exercise, body, solution=solution), exercise)
        met = report.misconception.name if report.misconception else None
        passes = (name, text) in WITHIN_TOLERANCE
        assert (report.status == "passed") == passes, f"{text}: {report}"
        if passes:
            continue
        assert report.told.kind == "wrong", f"{text}: {report}"
        assert met == SAME_AS.get((name, text)), f"{text}: {report}"


@pytest.mark.parametrize("name", CALLED)
def test_a_right_answer_passes_as_a_numpy_scalar_printing_a_lot_or_spoiling_its_arguments(
    name, capsys
):
    exercise, solution = loaded(name)
    call = f"right({', '.join(exercise.parameters)})"
    lists = f"for given in ({', '.join(exercise.parameters)},):\n    if isinstance(given, list):"
    for body in (
        f"return convert({call})",
        f"for _ in range(20):\n    print('x' * 500)\nreturn {call}",
        f"answer = {call}\n{lists}\n        given.clear()\nreturn answer",
    ):
        convert = fuzz.AS_NUMPY[exercise.returns]
        solved = fuzz.function(exercise, body, right=solution, convert=convert)
        report = check(solved, exercise)
        assert report.status == "passed", f"{body}: {report}"
    assert capsys.readouterr().out == "", "what is printed stays out of the page"


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_called_like_the_exercise_is_told_before_any_case(name):
    exercise, _ = loaded(name)
    first = exercise.parameters[0]
    wanted = f"`{exercise.function}({', '.join(exercise.parameters)})`"
    for text, words in {
        f"def {exercise.function}():\n    return 1\n": f"is called as {wanted}",
        f"def {exercise.function}({first}, a, b, c, d, e, f, g):\n    return 1\n":
            f"is called as {wanted}",
        f"{exercise.function} = 7\n": "is not a function here, it is 7",
        f"def {exercise.function}(*given):\n    yield 1\n": "has a `yield`",
        f"async def {exercise.function}(*given):\n    return 1\n": "is an `async def`",
    }.items():  # fmt: skip
        report = check(fuzz.typed(exercise, text), exercise)
        assert report.status == "failed" and not report.failures and not report.misconception
        assert words in report.sentences()[0], f"{text}: {report}"


@pytest.mark.parametrize(
    "name, field, text",
    [
        ("44_longest_prefix", "limit", "float('-inf') if seat.overtaken >= 6 else -seat.found"),
        ("45b_chunk_size", "at_least", "right(replace(step, at_least=64))"),
        ("45a_admission", "page_tokens", "right(newcomer, running, total_pages, 16)"),
        ("45a_admission", "total_pages", "right(newcomer, running, 30, page_tokens)"),
        ("43b_pages_to_load", "page_tokens", "0 if offer.load_s > 1e-3 else offer.pages - 11"),
        ("47_ladder", "most", "right(rows, 3)"),
    ],
)
def test_what_is_given_cannot_be_replaced_by_a_constant_that_fits_the_visible_cases(
    name, field, text
):
    exercise, solution = loaded(name)
    rule = fuzz.function(exercise, f"return {text}", right=solution, replace=replace)
    report = check(rule, exercise)
    assert report.status == "failed" and report.misconception is None, f"{field}: {report}"


KERNELS = {
    "typo in a name": (
        ("total = 0.0", "total = zzqqxx"),
        "there is no `zzqqxx`",
        "(`total = zzqqxx`)",
    ),
    "wrong attribute": (("tl.zeros(", "tl.zeroes("), "did you mean `zeros`?", "tl.zeroes([DIM]"),
    "wrong argument": (("(scores, 0)", "(scores, dim=0)"), "`max` has no argument", ""),
    "index": (("total = 0.0", "total = q[0]"), "take out by index", "(`total = q[0]`)"),
    "no list": (("tl.zeros([DIM]", "tl.zeros(DIM"), "a shape is a list", "in line "),
    "no such axis": (("tl.max(scores, 0)", "tl.max(scores, 3)"), "no axis 3 in", "axes [16]"),
    "length": (("total = 0.0", "total = len(q)"), "has no `len()`", "(`total = len(q)`)"),
    "list": (("return out / total", "return [0.0]"), "used a `list`", "(`return [0.0]`)"),
    "raises": (("total = 0.0", 'raise ValueError("my own words")'), "my own words", "in line "),
    "endless loop": (("total = 0.0", "while True:\n        pass"), "longer than 1 s", ""),
    "None": (("return out / total", "return None"), "returned None", ""),
    "forgotten return": (("return out / total", "out / total"), "is a `return` missing?", ""),
    "tuple": (("return out / total", "return out, total"), "a tuple, `(out, total)`", ""),
    "string": (("return out / total", "return 'out'"), "the text 'out'", ""),
    "float": (("return out / total", "return 3.5"), "starts with 3.5000, expected 0.", ""),
    "NaN": (("return out / total", 'return out / total * float("nan")'), "holds NaN", ""),
    "one key fewer": (("range(0, context, KEYS)", "range(0, context - 1, KEYS)"), "holds NaN", ""),
    "one key more": (("key < context", "key <= context"), "the output holds NaN", ""),
    "negative": (("return out / total", "return -out / total"), "the output is off by", ""),
    "query down the rows": (
        ("k * q[None, :]", "k * q[:, None]"),
        "do not fit together",
        "`x[None, :]` along the columns",
    ),
    "weights along the columns": (
        ("weights[:, None] * v", "weights[None, :] * v"),
        "do not fit together",
    ),
    "sum over the keys": (("k * q[None, :], 1)", "k * q[None, :], 0)"), "do not fit together"),
    "huge number": (("return out / total", "return out / total * 1e30"), "off by", ""),
    "prints": (("return out", "print('x' * 100000)\n    return 1.0 + out"), "off by", ""),
}


SAME_KERNEL = {"one key more": "behind"}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", KERNELS)
def test_a_kernel_that_breaks_or_is_beside_the_right_one_is_no_misconception(mistake):
    exercise, solution = loaded("46_online_softmax")
    (old, new), *words = KERNELS[mistake]
    text = inspect.getsource(solution)
    assert old in text
    report = fuzz.quickly(fuzz.typed(exercise, text.replace(old, new)), exercise)
    met = report.misconception.name if report.misconception else None
    assert report.status == "failed" and met == SAME_KERNEL.get(mistake), str(report)
    assert all(each in report.told.text for each in words), str(report)


TILES = {
    "a key at a time": (
        (
            ("range(0, context, KEYS)", "range(0, context)"),
            ("start + tl.arange(0, KEYS)", "start + tl.arange(0, 1)"),
        ),
        "take KEYS keys with one load",
    ),
    "all keys at once": (
        (
            ("range(0, context, KEYS)", "range(0, context, 128)"),
            ("start + tl.arange(0, KEYS)", "start + tl.arange(0, 128)"),
        ),
        "128 keys at once",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", TILES)
def test_a_kernel_that_does_not_read_tile_by_tile_fails(way):
    """Right outputs and right bytes, and no online softmax needed."""
    exercise, solution = loaded("46_online_softmax")
    text, (changes, words) = inspect.getsource(solution), TILES[way]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    report = check(fuzz.typed(exercise, text), exercise)
    assert report.status == "failed" and report.misconception is None, str(report)
    assert words in report.told.text, str(report)


@pytest.mark.slow
def test_a_kernel_that_prints_and_is_right_passes():
    exercise, solution = loaded("46_online_softmax")
    text = inspect.getsource(solution).replace("total = 0.0", "print('x' * 9999)\n    total = 0.0")
    assert check(fuzz.typed(exercise, text), exercise).status == "passed"


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_needs_no_solutions_folder(name, tmp_path, monkeypatch):
    shutil.copytree(labs_directory() / "exercises", tmp_path / "exercises")
    monkeypatch.setattr("widgets.panels.exercises.exercise.labs_directory", lambda: tmp_path)
    exercise = load_exercise(name, tmp_path)
    assert exercise.misconceptions and load_solution(name, exercise, tmp_path) is None
