"""The error for a model that cannot be served, as a sentence for the user."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be found, read or run. The message says what was given and what to do."""
