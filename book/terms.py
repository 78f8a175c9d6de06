"""The glossary's terms, and links to them from where a chapter sets one in bold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

GLOSSARY = Path(__file__).resolve().parent / "glossary.md"
_BOLD = re.compile(r"\*\*([^*`\n]+)\*\*")
_ENDINGS = ("", "s", "es", "ed")


@cache
def terms() -> Mapping[str, str]:
    """Each term in small letters -> as the glossary writes it."""
    block = GLOSSARY.read_text(encoding="utf-8").split("```{glossary}")[1].split("```")[0]
    written = [line.strip() for line in block.splitlines() if line and line[0] != " "]
    return {term.lower(): term for term in written}


def linked(text: str) -> str:
    """`text` in MyST, where each bold term of the glossary is a link, whatever its ending."""
    return _BOLD.sub(_link, text)


def _link(bold: re.Match[str]) -> str:
    words = bold[1].lower()
    stems = (words.removesuffix(ending) for ending in _ENDINGS)
    term = next((terms()[stem] for stem in stems if stem in terms()), None)
    return bold[0] if term is None else f"**{{term}}`{bold[1]} <{term}>`**"
