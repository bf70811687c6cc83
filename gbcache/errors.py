"""One exception per error a user can act on. All derive from `GbError`."""

from __future__ import annotations

__all__ = ["BudgetError", "ClosedError", "GbError", "ImageError"]


class GbError(Exception):
    """Anything GbCache itself raises."""


class BudgetError(GbError, ValueError):
    """A value that can never fit the byte budget. The cache is as it was: the old value is kept."""


class ClosedError(GbError, ValueError):
    """A cache was used after `close()`, or before its `__init__` had run."""


class ImageError(GbError, ValueError):
    """A file is not a sound image: torn, foreign, hostile or of another version."""
