"""The recap's right answers hold by the chapter's own numbers."""

from __future__ import annotations

from collections.abc import Iterator

from labs.running import ChapterRun

from labs import rules_questions


def recap_answers_have_evidence(run: ChapterRun) -> Iterator[str]:
    """Each answer marked right is so in this run, and what a number refutes is refuted."""
    yield from rules_questions.recap_answers_have_evidence(run.name, run.names)
