"""Small models that are really trained, and how they were made.

Knows where the shipped model directories are; importing it loads nothing heavy. The parts:
`corpus`, `tokenizer`, `data`, `net`, `muon`, `train`, `export`, `score`, `evaluate`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["zoo_path"]


def zoo_path(name: str) -> Path:
    """The directory of a shipped model, from `"zoo/base"` or `"base"`.

    Raises FileNotFoundError, naming the models there are, when there is none of that name.
    """
    folder = Path(__file__).parent
    models = sorted(path.parent.name for path in folder.glob("*/config.json"))
    bare = name.removeprefix("zoo/")
    if bare not in models:
        there = ", ".join(f"zoo/{model}" for model in models) or "none at all"
        raise FileNotFoundError(f"There is no model {name!r} in the zoo; there is: {there}.")
    return folder / bare
