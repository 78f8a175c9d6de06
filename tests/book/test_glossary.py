"""The glossary has every term that a chapter sets in bold, and every abbreviation it uses."""

from __future__ import annotations

import re

import nbformat
import pytest

from book.records import chapters
from book.terms import GLOSSARY, linked, terms

# Emphasis, not terms. A chapter's new term goes into book/glossary.md, a phrase here.
STRESSED = {
    "To begin",
    "how many times slower is one of the last tokens without the cache?",
    "share of taken KV memory that holds tokens",
    "no request is ever preempted",
    "each key and value once",
    "disk",  # the disk tier
    "splits",
}
# Names of conferences, products and papers, and parameters of an exercise.
NAMES = {"OSDI", "CACM", "ASPLOS", "TRAIL", "XQA", "KEYS", "DIM", "SOSP", "MLSYS", "NSDI", "ISCA"}
_LABELS = re.compile(r"Minutes|Difficulty|Machine|Know first|You will be able to|How to use .*")
_UNITS = re.compile(r"[kMGT]i?B|[kMGT]?FLOPs?")


def prose(path: object) -> str:
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"<details>.*?</details>|`[^`]*`|^\|.*$", "", text, flags=re.M | re.DOTALL)


def known(term: str) -> bool:
    """In the glossary, whatever its ending: "launches", "Paged memory", "preempted", "fused"."""
    words = term.lower()
    stems = {words, words.removesuffix("s"), words.removesuffix("es"), words.removesuffix("ed")}
    median = words.removeprefix("median ")
    return any(each.startswith(stem) for each in terms() for stem in (*stems, median) if stem)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_every_term_in_bold_is_in_the_glossary(path: object) -> None:
    bold = set(re.findall(r"\*\*([^*]+)\*\*", prose(path)))
    terms = {each for each in bold if each[-1] not in ".:?!" and not _LABELS.fullmatch(each)}
    assert {each for each in terms - STRESSED if not known(each)} == set()


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_every_abbreviation_is_in_the_glossary(path: object) -> None:
    found = set(re.findall(r"\b[A-Z][A-Za-z]?[A-Z]+\b", prose(path)))
    short = {each for each in found - NAMES if not _UNITS.fullmatch(each)}
    told = " ".join(terms())
    assert {each for each in short if each.lower() not in told} == set()


def test_the_glossary_is_in_order() -> None:
    block = GLOSSARY.read_text(encoding="utf-8").split("```{glossary}")[1].split("```")[0]
    listed = [line.lower() for line in block.splitlines() if line and line[0] != " "]
    assert listed == sorted(listed) == list(terms())


def test_a_bold_term_leads_to_its_entry_and_other_emphasis_stays():
    assert (
        linked("**Launches** are **not free**") == "**{term}`Launches <launch>`** are **not free**"
    )
    assert linked("**TTFT**, **fused**") == "**{term}`TTFT <TTFT>`**, **{term}`fused <fused>`**"
