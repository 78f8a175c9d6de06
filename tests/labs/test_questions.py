"""Questions are complete, short and fair, each is asked once, and recap answers are so."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from labs.rules_questions import recap_answers_have_evidence

from labs import lint, rules_questions
from widgets.scoring import questions
from widgets.scoring.questions import QuestionError, load

CHAPTERS = {path.name.split("_")[0]: path for path in lint.chapters()}
ASKING = {"Predict": 1, "Estimate": 0, "Recap": 0}
"""Panel -> which argument names its questions."""
OLD_WORDS = r"\b(whoever|somebody|nobody|everybody|anybody|whichever)\b"


def asked_in(path: Path) -> list[str]:
    """The keys that a chapter's panels name."""
    keys = []
    for cell in lint.code_cells(lint.read(path)):
        for node in ast.walk(ast.parse(lint.source(cell))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ASKING:
                key = ast.literal_eval(node.args[ASKING[node.func.id]])
                keys.append(f"{key}.recap" if node.func.id == "Recap" else key)
    return keys


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(lint.LABS)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_question_is_asked_once(chapter):
    asked = load(chapter)
    own = [each.key for each in (*asked.predict.values(), *asked.estimate.values(), asked.recap)]
    assert sorted(asked_in(CHAPTERS[chapter])) == sorted(own)
    assert len(asked.recap.questions) == 5


def test_there_is_a_file_for_every_chapter_and_none_beside():
    files = {path.stem for path in (lint.LABS / "questions").glob("*")}
    assert files == set(CHAPTERS) and len(files) >= 9


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_questions_are_short_plain_sentences(chapter):
    for kind, text in rules_questions.texts(load(chapter)):
        assert text, kind
        assert rules_questions.words(text) <= rules_questions.LONGEST[kind], (kind, text)
        assert not re.search(OLD_WORDS, text, re.IGNORECASE), text
        # One word per thing: a request runs in a slot, its tokens lie in pages.
        assert not re.search(r"\b(places?|seats?|blocks)\b", text), text


def test_the_position_of_an_answer_gives_nothing_away():
    places = {"predict": Counter(), "recap": Counter()}
    for chapter in CHAPTERS:
        asked = load(chapter)
        reasons = [one.reasons for each in asked.predict.values() for one in each.questions]
        answers = [one.answers for one in asked.recap.questions]
        for kind, options in (("predict", reasons), ("recap", answers)):
            for each in options:
                places[kind][[option.correct for option in each].index(True)] += 1
            if kind == "recap":
                assert len({[o.correct for o in each].index(True) for each in options}) > 1
    for counted in places.values():
        for place in range(3):
            assert 0.22 <= counted[place] / counted.total() <= 0.45, counted


def test_the_length_of_an_answer_gives_nothing_away():
    longest = []
    for chapter in CHAPTERS:
        asked = load(chapter)
        options = [one.answers for one in asked.recap.questions]
        options += [one.reasons for each in asked.predict.values() for one in each.questions]
        found = [max(each, key=lambda option: len(option.text)).correct for each in options]
        assert found.count(True) < len(found) - 1, chapter
        longest += found
    assert longest.count(True) <= 0.45 * len(longest)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_question_for_class_stands_in_the_chapter_and_its_answer_in_the_notes(chapter):
    question = load(chapter).for_class.question
    cells = lint.read(CHAPTERS[chapter])["cells"]
    assert sum(question in lint.source(cell) for cell in cells) == 1
    notes = (lint.LABS / "teaching" / f"{chapter}.md").read_text(encoding="utf-8")
    for heading in ("Time", "Traps", "Question for class", "Model answer", "Misconceptions"):
        assert f"\n**{heading}.**" in notes, heading
    assert question in notes
    assert 10 <= len(notes.splitlines()) <= 30
    assert not re.search(OLD_WORDS, notes, re.IGNORECASE)


GOOD = (lint.LABS / "questions" / "45b.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("correct = true", "correct = false", "'itl_max_s'.*one of them"),
        ("feedback =", "feedbak =", r"flip.*reasons\[0\].*unknown field 'feedbak'"),
        ('metric = "itl_max_s"\n', "", "has no field 'metric'"),
        ("[class]", "[klass]", "unknown field 'klass'"),
        ('unit = "tokens"', "unit = 7", "unit"),
        ("cost.result.crossover", "cost.result.", "no Python expression"),
        ("[recap.ledger]", "[recap.ledger", "is not TOML"),
        ("cost.result.crossover", "(" * 3000, r"'\(\(.{78}' is no Python expression"),
        ("cost.result.crossover", r"cost\\u0000", "no Python expression"),
        (
            'unit = "tokens"',
            'unit = "tokens"\nwithin = 0.5',
            "within is 0.5, expected a factor of 1",
        ),
        ('unit = "tokens"', 'unit = "tokens"\nchoices = [0, 1]', "different choices above 0"),
        ('unit = "tokens"', 'unit = "tokens"\nchoices = [2, 2]', "different choices above 0"),
        ("largest_factor = ", "largest_factor = 1 # ", "largest_factor is 1.*, expected above 1"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path, old, new, message):
    folder = tmp_path / "questions"
    folder.mkdir()
    assert GOOD.count(old)
    (folder / "45b.toml").write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(QuestionError, match=rf"(?s)45b\.toml.*{message}"):
        load("45b", tmp_path)


def test_a_question_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(QuestionError, match=r"no \[estimate.rigde\]; it has: \[estimate.ridge\]"):
        questions.find_quantity("45b.rigde")
    with pytest.raises(QuestionError, match="is missing; there are: none"):
        load("45b", tmp_path)
    with pytest.raises(QuestionError, match="expected for example"):
        questions.find_prediction("45b")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "questions" / "45b.toml").mkdir(parents=True)
    with pytest.raises(QuestionError, match="cannot be read: Is a directory"):
        load("45b", tmp_path)


def test_every_word_of_a_question_changes_its_fingerprint_and_nothing_else_does():
    asked = load("45b").predict["flip"]
    question = asked.questions[0]
    reasons = (replace(question.reasons[0], feedback="Another."), *question.reasons[1:])
    other = replace(asked, questions=(replace(question, reasons=reasons), *asked.questions[1:]))
    assert questions.fingerprint(asked) == questions.fingerprint(load("45b").predict["flip"])
    assert questions.fingerprint(asked) != questions.fingerprint(other)
    assert repr(question.reasons[0]).startswith("Reason(text="), "or commits of before are lost"


def test_an_expression_says_which_name_is_missing():
    with pytest.raises(NameError, match=r"45b\.ridge needs H100"):
        questions.Expression("H100.device", {}, "45b.ridge")
    assert questions.free_names("[x for x in rows if len(x) > least]") == {"rows", "least"}
    assert questions.free_names("(lambda a: a + b)(1)") == {"b"}


def test_evidence_that_does_not_hold_is_reported():
    found = recap_answers_have_evidence("45b", {"compare": None})
    assert len(found) >= 5 and all(text.startswith("recap ") for text in found)
