"""One exception per error a user can act on. All derive from `GbError`."""

from __future__ import annotations

__all__ = ["BudgetError", "ClosedError", "FarError", "GbError", "ImageError", "KeyLengthError"]


class GbError(Exception):
    """Anything GbCache itself raises."""


class BudgetError(GbError, ValueError):
    """A value that can never fit the byte budget. The cache is as it was: the old value is kept."""


class KeyLengthError(GbError, ValueError):
    """A key longer than a packed cache takes (3996 bytes). Nothing was changed; a digest of it does as well.

    A `Tiered` raises it only of a far side that refuses the key itself: what memory cannot hold is read from there.
    """


class ClosedError(GbError, ValueError):
    """A cache was used after `close()`, or before its `__init__` had run."""


class FarError(GbError, OSError):
    """The far side of a `Tiered` could not do it: not reached in time, its disk full, its connection lost.

    Trying again may help. Of a write it is not known whether it took place. What the far side itself raised is
    the ``__cause__``.
    """


class ImageError(GbError, ValueError):
    """A file is not a sound snapshot or live file: torn, foreign, hostile or of another version.

    `path`: the file; `offset`: the byte at which, None where it is about the whole file; `rule`: the sentence
    that does not hold.
    """

    def __init__(self, path: object, offset: int | None, rule: str) -> None:
        super().__init__(path, offset, rule)
        self.path, self.offset, self.rule = path, offset, rule

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at byte {self.offset}:"
        return f"{self.path}:{where} it does not hold that {self.rule}"
