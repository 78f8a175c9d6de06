"""What goes wrong with a model before the first token, said to the person who asked for it."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be found, read or run. The message says what was given and what to do."""
