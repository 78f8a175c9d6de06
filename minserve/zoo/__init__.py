"""Small models that are really trained, and how they were made.

Knows where the shipped model directories are; importing it loads nothing heavy. The parts:

- text: `corpus` (what may be trained on, what is held out), `tokenizer`, `data` (windows),
  `overlap` (what of the held-out text still stands in the rest)
- training: `net`, `muon`, `trainer` (state and one step), `budget`, `loop`, `export`; the commands
  are `python -m minserve.zoo.train` for `zoo/base` and, after it, `python -m minserve.zoo.distil`
  for `zoo/draft`, with `own_text` (what the base writes), `taught` (what it thought) and
  `distil_loss`
- judging: `score`, `continuations`, `agreement`, `pair`, `evaluate` (`minserve zoo evaluate`), and
  `card`, which writes what was found into the model cards
- serving: `lengths`, which predicts how long an answer will be, fitted by
  `python -m minserve.zoo.lengths_train` whenever the base model's weights change
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
