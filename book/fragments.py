"""Pieces of a record as HTML: figures with their controls, panels, questions in folds, exercises.

Nothing is scored here, and every answer stands in a fold. Knows nothing about notebooks or Sphinx.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from book.records import LABS, Piece, Record, RecordError
from widgets.scoring import questions

IN_THE_LAB = (
    '<p class="book-lab">Recorded. In <a href="index.html#the-lab">the lab</a> this panel runs on '
    "your machine: change its settings and run it again.</p>"
)
NO_SCRIPT = (
    "<noscript>Figures need JavaScript. The numbers of this one are listed below.</noscript>"
)
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
_COUNT = ("First", "Second", "Third")


def fragment(piece: Piece, record: Record, *, solutions: bool = True) -> str:
    """One piece as HTML; "" for text, which a notebook shows by itself."""
    kind = piece["kind"]
    if kind == "named":
        return figure(record.named[piece["name"]])
    if kind == "figure":
        return figure(piece)
    if kind == "html":
        return f'<div class="book-html">{_STYLE.sub("", piece["html"])}</div>'
    if kind == "panel":
        return (
            f'<div class="book-panel"><p class="book-title">{escape(piece["title"])}</p>'
            f"{_STYLE.sub('', piece['html'])}{IN_THE_LAB}</div>"
        )
    if kind == "lab only":
        text = escape(piece["text"])
        return (
            f'<div class="book-panel"><p>{text}</p><p class="book-lab">Only in the lab.</p></div>'
        )
    if kind in ("predict", "estimate", "recap"):
        return question(piece, record.answers)
    if kind == "exercise":
        return exercise(piece, solutions=solutions)
    if kind == "text":
        return ""
    raise RecordError(f"{record.chapter}: its record has a piece of unknown kind {kind!r}")


def figure(piece: Piece) -> str:
    """A plot that `book.js` draws, its words, and the controls of what can be moved in it."""
    data = json.dumps({"plot": piece["plot"], "motion": piece["motion"]}, separators=(",", ":"))
    # What ends a script element may not stand in it.
    data = data.replace("</", r"<\/")
    height = int(piece["plot"]["layout"].get("height", 360))
    name = f' data-name="{piece["name"]}"' if "name" in piece else ""
    return (
        f'<figure class="book-figure"{name}><p class="book-title"></p>'
        f'<div class="book-plot" role="img" aria-label="{escape(piece["alt"])}" '
        f'style="min-height:{height}px">{NO_SCRIPT}</div>{_controls(piece)}'
        f"<figcaption>{_STYLE.sub('', piece['words'])}</figcaption>"
        f'<script type="application/json">{data}</script></figure>'
    )


def _controls(piece: Piece) -> str:
    labels = piece["motion"]["labels"]
    if len(labels) < 2:
        return ""
    start = piece["motion"]["start"] % len(labels)
    return (
        '<div class="book-controls"><button type="button" aria-pressed="false">Play</button>'
        f'<input type="range" min="0" max="{len(labels) - 1}" value="{start}" '
        f'aria-label="Moment" aria-valuetext="{escape(labels[start])}">'
        f"<output>{escape(labels[start])}</output></div>"
    )


def question(piece: Piece, answers: Mapping[str, Mapping[str, str]]) -> str:
    """A prediction, an estimate or the recap, each answer in a fold."""
    chapter, name = piece["key"].split(".", 1)
    asked, found = questions.load(chapter), answers.get(piece["key"], {})
    if piece["kind"] == "predict":
        return "".join(_predicted(each, found) for each in asked.predict[name].questions)
    if piece["kind"] == "estimate":
        return _estimated(asked.estimate[name], found)
    choices = (_choice(number, each) for number, each in enumerate(asked.recap.questions, start=1))
    ledger = "".join(
        f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>"
        for what, text in asked.recap.ledger.words().items()
    )
    return "".join(choices) + _fold("The ledger of this chapter", f"<dl>{ledger}</dl>")


def _predicted(asked: questions.Question, found: Mapping[str, str]) -> str:
    answer = f"<p>{escape(found[asked.metric])}</p>" if asked.metric in found else ""
    options = [(reason.text, reason.feedback, reason.correct) for reason in asked.reasons]
    return _asked("Predict", asked.text, options, answer, "More or less, by which factor, and why?")


def _estimated(asked: questions.Quantity, found: Mapping[str, str]) -> str:
    value = found.get("value")
    answer = f"<p>It is {escape(value)}.</p>" if value else ""
    answer += f"<p>{escape(asked.explain)}</p>" if asked.explain else ""
    hint = ""
    if asked.choices:
        hint = "Choose: " + ", ".join(f"{each:,g}" for each in asked.choices)
        hint += f" {asked.unit}." if asked.unit else "."
    return _asked("Estimate", found.get("text", asked.text), [], answer, hint)


def _choice(number: int, asked: questions.Choice) -> str:
    options = [(answer.text, answer.feedback, answer.correct) for answer in asked.answers]
    return _asked(f"Question {number}", asked.text, options, "")


def _asked(
    what: str, text: str, options: Iterable[tuple[str, str, bool]], answer: str, hint: str = ""
) -> str:
    """A question, what may be answered, and the answer in a fold."""
    given = list(options)
    listed = "".join(f"<li>{escape(option)}</li>" for option, *_ in given)
    told = "".join(
        f'<li class="{"right" if correct else "wrong"}"><b>{"Right" if correct else "Not so"}:</b> '
        f"{escape(option)} <i>{escape(feedback)}</i></li>"
        for option, feedback, correct in sorted(given, key=lambda each: not each[2])
    )
    hinted = f"<p>{escape(hint)}</p>" if hint else ""
    return (
        f'<section class="book-question" aria-label="{what}">'
        f"<p><b>{what}.</b> {escape(text)}</p>{hinted}"
        f"{f'<ol type=a>{listed}</ol>' if listed else ''}"
        f"{_fold('Answer', answer + (f'<ul>{told}</ul>' if told else ''))}</section>"
    )


def exercise(piece: Piece, *, solutions: bool, labs: Path = LABS) -> str:
    """What is to be written, three hints, and the worked solution, each in a fold of its own."""
    task = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(piece["task"]))
    parts = [
        _fold(f"{count} hint", f"<p>{escape(hint)}</p>")
        for count, hint in zip(_COUNT, piece["hints"], strict=True)
    ]
    if solutions:
        source = (labs / "solutions" / f"{piece['name']}.py").read_text(encoding="utf-8")
        parts.append(_fold("The worked solution", f"<pre>{escape(source)}</pre>"))
    return (
        f'<section class="book-question" aria-label="Exercise">'
        f"<p><b>Exercise: {escape(_sentence(piece['title']))}</b> {task} "
        f"(<code>{escape(piece['function'])}</code>)</p>"
        f'{"".join(parts)}<p class="book-lab">In <a href="index.html#the-lab">the lab</a> your '
        "answer is checked, and a typical mistake is named.</p></section>"
    )


def _sentence(title: str) -> str:
    """With a full stop, where it does not end in a mark of its own."""
    return title if title.endswith(("?", "!", ".")) else f"{title}."


def _fold(title: str, html: str) -> str:
    return f'<details class="book-fold"><summary>{escape(title)}</summary>{html}</details>'


def text_of(piece: Piece) -> dict[str, Any]:
    """Printed text as a notebook's output."""
    return {"output_type": "stream", "name": "stdout", "text": piece["text"]}
