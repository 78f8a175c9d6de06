"""The answer to a prediction: part by part, right or not and why, beside what was measured."""

from __future__ import annotations

import re
from html import escape

from widgets import theme
from widgets.panels import views
from widgets.panels.questions.guess import PARTS, Guess, Score, direction_words
from widgets.scoring.questions import Question


def _heading(text: str) -> str:
    return f"<p style='margin:.5rem 0 .2rem'><b>{escape(text)}</b></p>"


def answered(question: Question, measured: str = "") -> str:
    """All reasons, with which is right and why; with what was measured where that is known."""
    lines = [_heading(f"{measured}." if measured else question.text)]
    for reason in question.reasons:
        text = f"{'right' if reason.correct else 'not so'}: {reason.text} {reason.feedback}"
        lines.append(views.sentence(text, "good" if reason.correct else "plain"))
    return "".join(lines)


def _factor(guess: Guess) -> str:
    """With its direction: 3x up is wrong where the quantity went 3x down."""
    way = f" {guess.direction}" if guess.direction in ("up", "down") else ""
    return f"a factor of {theme.format_ratio(guess.factor or 1.0)}{way}"


def feedback(question: Question, guess: Guess, one: Score | None, measured: str) -> str:
    """Each part, right or not and why; a part without a score says so."""
    lines = [_heading(f"{measured}.")]
    chosen = None if guess.reason is None else question.reasons[guess.reason]
    said = {
        "direction": guess.direction and f"You said it {direction_words(guess.direction)}",
        "factor": guess.ratio and f"You said {_factor(guess)}",
        "reason": chosen and f"{chosen.text} {chosen.feedback}",
    }
    for part in PARTS:
        # A reason is right or wrong whatever the machine was busy with.
        right = chosen and chosen.correct if part == "reason" else one and getattr(one, part)
        if said[part] is None:
            lines.append(views.sentence(f"{part}: not predicted, not scored"))
        elif right is None:
            lines.append(views.sentence(f"{part}, not scored yet: {said[part]}"))
        else:
            text = f"{part}, {'right' if right else 'not so'}: {said[part]}"
            lines.append(views.sentence(text, "good" if right else "bad"))
    if chosen is None or not chosen.correct:
        best = next(reason for reason in question.reasons if reason.correct)
        # The feedback answers the reader who chose it; here it explains.
        why = re.sub(r"^Yes[:.,] *", "", best.feedback)
        text = f"The reason: {best.text} {why[:1].upper()}{why[1:]}"
        lines.append(views.sentence(text, "info"))
    return "".join(lines)
