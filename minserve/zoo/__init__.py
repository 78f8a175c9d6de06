"""Small trained models, and how they were made.

Knows where the shipped model directories are; importing it loads nothing heavy. The parts:

- `corpus`: which text may be trained on and which is held out, the tokenizer, and batches
- `training`: the network, its optimizers and the loop; `python -m minserve.zoo.training.train`
  makes `zoo/base`, and after it `python -m minserve.zoo.training.distil` makes `zoo/draft`
- `evaluation`: bits per byte, continuations, agreement of draft and base (`minserve zoo evaluate`),
  and the model cards written from them
- `recall`: tasks that need tokens far back; `python -m minserve.zoo.recall.train` makes
  `zoo/recall-gqa`, and `minserve.zoo.recall.evaluate` its card
- `fetching`: real models that do not ship: `minserve zoo fetch` gets them, converts and checks them
- `lengths`: predicts how long an answer will be; `python -m minserve.zoo.lengths_train` fits it
  again whenever the base model's weights change
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ZOO", "zoo_path"]

ZOO = Path(__file__).parent
"""The directory of the shipped model directories."""


def zoo_path(name: str) -> Path:
    """The directory of a shipped model, from `"zoo/base"` or `"base"`.

    Raises FileNotFoundError, naming the models that exist, if there is none with that name.
    """
    models = sorted(path.parent.name for path in ZOO.glob("*/config.json"))
    bare = name.removeprefix("zoo/")
    if bare not in models:
        there = ", ".join(f"zoo/{model}" for model in models) or "none at all"
        raise FileNotFoundError(f"There is no model {name!r} in the zoo; there is: {there}.")
    return ZOO / bare
