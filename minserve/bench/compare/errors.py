"""What is said of a setup that cannot be compared."""

from __future__ import annotations

from minserve.config import ConfigError


class SetupError(ConfigError):
    """A setup that cannot be compared. The message says what to do instead."""
