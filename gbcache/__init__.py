"""An LRU memory cache that never exceeds its byte budget, with a TTL for every key.

>>> import gbcache
>>> cache = gbcache.Cache("64MB", ttl=300)
>>> cache["user:1"] = {"name": "Ada"}
>>> cache["user:1"]
{'name': 'Ada'}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import interpreter as interpreter  # isort: split

from .cache import Cache, ObjectCache
from .codec import Codec
from .errors import BudgetError, ClosedError, FarError, GbError, ImageError, KeyLengthError
from .events import OMITTED, Event, Kind
from .far import Far
from .live import Recovery
from .memoize import memoize
from .notify import Subscription
from .snapshot import Save, Sealed, SnapshotInfo
from .stats import Entry, Memory, ObjectEntry, Stats
from .tier import Tiered, TierStats
from .watch import Watch

__all__ = [
    "OMITTED",
    "BudgetError",
    "Cache",
    "ClosedError",
    "Codec",
    "Entry",
    "Event",
    "Far",
    "FarError",
    "GbError",
    "ImageError",
    "KeyLengthError",
    "Kind",
    "Memory",
    "ObjectCache",
    "ObjectEntry",
    "Recovery",
    "Save",
    "Sealed",
    "SnapshotInfo",
    "Stats",
    "Subscription",
    "TierStats",
    "Tiered",
    "Watch",
    "memoize",
]
if TYPE_CHECKING:
    from .disk import Disk as Disk
    from .valkey import Valkey as Valkey


def __getattr__(name: str) -> Any:
    """`Disk` and `Valkey`, which need packages of their own: not imported before they are asked for."""
    if name == "Disk":
        from .disk import Disk

        return Disk
    if name == "Valkey":
        from .valkey import Valkey

        return Valkey
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"
