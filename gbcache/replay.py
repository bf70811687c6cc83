"""Replays a request trace through a cache in front of a source that costs time.

A request is a look-up; on a miss the source makes the value and the cache stores it. Uses only what
`gbcache` exports.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import lzma
import math
import os
import sys
import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, NamedTuple

import gbcache

__all__ = [
    "Report",
    "Request",
    "Source",
    "TraceError",
    "read_trace",
    "reference_lru",
    "replay",
    "sample",
]

_COLUMNS = ("key", "size", "ttl", "time")


class TraceError(ValueError):
    """A trace that cannot be read; the message names the file and the line."""


class Request(NamedTuple):
    """One look-up. `size` and `ttl` are 0 where the trace does not say; `time` in seconds."""

    key: str
    size: int = 0
    ttl: float = 0
    time: float = 0


def sample() -> Path:
    """The trace that comes with the package: 400,000 requests of orm-busy (CC BY 4.0)."""
    return Path(str(resources.files("gbcache.data") / "orm-busy-sample.txt.xz"))


def _open(path: Path) -> IO[str]:
    openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
    opener = openers.get(path.suffix, open)
    try:
        return opener(path, "rt", encoding="utf-8", errors="replace")  # type: ignore[no-any-return]
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error


def read_trace(path: Path, limit: int | None = None) -> list[Request]:
    """The requests of a file: a key a line, or the columns key size ttl time (header ``# fields: ...``).

    .xz and .gz are opened as they are. Raises TraceError naming the line for anything that is not such
    a file, or holds no request; ValueError for a `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is no number of requests from 1")
    requests: list[Request] = []
    columns: tuple[str, ...] = _COLUMNS
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("#"):
                    columns = _header(line, path, number) or columns
                elif parts := line.replace(",", " ").split():
                    requests.append(_request(parts, columns, path, number))
                    if limit is not None and len(requests) >= limit:
                        break
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise TraceError(f"{path}, after line {number}: {error}") from error
    if not requests:
        raise TraceError(f"{path}: no requests in it")
    return requests


def _header(line: str, path: Path, number: int) -> tuple[str, ...] | None:
    if "fields:" not in line:
        return None
    columns = tuple(line.split("fields:")[1].replace(",", " ").split())
    if "key" not in columns or not set(columns) <= set(_COLUMNS):
        raise TraceError(f"{path}, line {number}: fields {columns}, known are {_COLUMNS}")
    return columns


def _request(parts: list[str], columns: tuple[str, ...], path: Path, number: int) -> Request:
    if len(parts) > len(columns):
        raise TraceError(
            f"{path}, line {number}: {len(parts)} columns, at most {len(columns)} known"
        )
    named = dict(zip(columns, parts, strict=False))
    try:
        request = Request(
            named["key"],
            int(named.get("size", 0)),
            float(named.get("ttl", 0)),
            float(named.get("time", 0)),
        )
    except (KeyError, ValueError) as error:
        raise TraceError(f"{path}, line {number}: {error}") from error
    if request.size < 0 or not 0 <= request.ttl < math.inf:
        raise TraceError(f"{path}, line {number}: size and ttl must be 0 or above")
    if request.size >= 2**32:
        raise TraceError(f"{path}, line {number}: a size must be below 2**32, as a value's is")
    return request


class Source:
    """What a cache stands in front of: makes a key's value, and takes its time over it.

    The work is real (`rounds` of PBKDF2, about 0.1 ms for 300). A value's length is the trace's, or drawn
    for each key from a log-normal distribution (median 300 B, 16 B to 16 kB), the same in every run.
    """

    def __init__(self, rounds: int = 300) -> None:
        self.rounds = rounds
        self.loads = 0

    def size(self, request: Request) -> int:
        """The length of the request's value, in bytes."""
        if request.size:
            return request.size
        seed = hashlib.blake2b(request.key.encode(), digest_size=16).digest()
        a = (int.from_bytes(seed[:8], "little") + 1) / 2**64
        b = int.from_bytes(seed[8:], "little") / 2**64
        normal = math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * b)  # Box-Muller
        return min(max(int(math.exp(5.7 + normal)), 16), 16384)

    def load(self, request: Request) -> bytes:
        """The value: as long as `size` says, bytes that compress badly."""
        self.loads += 1
        digest = hashlib.pbkdf2_hmac("sha256", request.key.encode(), b"gbcache", self.rounds)
        size = self.size(request)
        return (digest * (size // len(digest) + 1))[:size]


@dataclass
class Report:
    """What a replay saw."""

    requests: int
    hits: int
    seconds: float
    stats: gbcache.Stats
    memory: gbcache.Memory
    rss_before: int
    rss_after: int
    hit_ns: array[int]
    load_ns: array[int]
    peak_payload: int
    rejects: int
    """Values, or keys, that the cache refused: misses, every time."""


def rss() -> int:
    """The process's resident bytes now (its peak, where the system tells no more)."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def percentile(ordered: array[int] | list[int], share: float) -> float:
    """The value below which `share` of the ordered figures lie; 0.0 for none."""
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if ordered else 0.0


def _progress(
    requests: list[Request], every: int, show: Callable[[int], None]
) -> Iterator[Request]:
    for at, request in enumerate(requests):
        if at % every == 0:
            show(at)
        yield request
    show(len(requests))


def replay(
    requests: list[Request],
    cache: gbcache.Cache,
    source: Source,
    *,
    ttl: Callable[[Request], float | None],
    show: Callable[[int], None] = lambda at: None,
) -> Report:
    """Runs the requests through `cache`, in order; on a miss the source's value is stored with `ttl`.

    What the cache refuses (BudgetError, KeyLengthError) is counted, and the replay goes on.
    """
    spent = array("q", bytes(8 * len(requests)))  # made beforehand, so that growth is the cache's
    before = rss()
    clock, start, peak, rejects = time.perf_counter_ns, time.perf_counter(), 0, 0
    for at, request in enumerate(_progress(requests, 4096, show)):
        if at % 4096 == 0:
            memory = cache.memory()
            peak = max(peak, memory.key_bytes + memory.value_bytes)
        began = clock()
        if cache.get(request.key) is not None:
            spent[at] = clock() - began
            continue
        try:
            cache.set(request.key, source.load(request), ttl=ttl(request))
        except (gbcache.BudgetError, gbcache.KeyLengthError):
            rejects += 1
        spent[at] = began - clock()  # a miss: negative
    seconds, after, memory = time.perf_counter() - start, rss(), cache.memory()
    hit_ns = array("q", sorted(ns for ns in spent if ns >= 0))
    return Report(
        requests=len(requests),
        hits=len(hit_ns),
        seconds=seconds,
        stats=cache.stats(),
        memory=memory,
        rss_before=before,
        rss_after=after,
        hit_ns=hit_ns,
        load_ns=array("q", sorted(-ns for ns in spent if ns < 0)),
        peak_payload=max(peak, memory.key_bytes + memory.value_bytes),
        rejects=rejects,
    )


def reference_lru(keys: Iterable[str], entries: int) -> int:
    """Hits of a strict LRU of so many entries, simulated with an OrderedDict."""
    held: OrderedDict[str, None] = OrderedDict()
    hits = 0
    for key in keys:
        if key in held:
            hits += 1
            held.move_to_end(key)
            continue
        held[key] = None
        if len(held) > entries:
            held.popitem(last=False)
    return hits


def bytes_lru(requests: list[Request], source: Source, payload: int) -> int:
    """Hits of a strict LRU that holds at most `payload` bytes of keys and values, without TTLs."""
    held: OrderedDict[str, int] = OrderedDict()
    hits = used = 0
    for request in requests:
        if request.key in held:
            hits += 1
            held.move_to_end(request.key)
            continue
        size = len(request.key) + source.size(request)
        if size > payload:  # it can never fit
            continue
        held[request.key] = size
        used += size
        while used > payload:
            used -= held.popitem(last=False)[1]
    return hits


# --- the same trace through whatever peers are installed -----------------------------------------


def _peers(entries: int) -> Iterator[tuple[str, Callable[[Any], Any], Callable[[Any, Any], Any]]]:
    """(name, get, set) of each installed peer, bounded to so many entries."""
    makers: list[tuple[str, str, Callable[[Any], Any]]] = [
        ("cachebox.LRUCache", "cachebox", lambda m: m.LRUCache(entries)),
        ("lru-dict LRU", "lru", lambda m: m.LRU(entries)),
        ("cachetools.LRUCache", "cachetools", lambda m: m.LRUCache(entries)),
        ("theine Cache", "theine", lambda m: m.Cache(entries)),
        ("moka-py Moka", "moka_py", lambda m: m.Moka(entries)),
    ]
    for name, module, make in makers:
        try:
            peer = make(importlib.import_module(module))
        except ImportError:
            continue
        setter = getattr(peer, "set", None) or peer.__setitem__
        if module == "theine":
            yield name, lambda k, p=peer: p.get(k)[0], setter  # type: ignore[misc]
        else:
            yield name, peer.get, setter


def compare(
    requests: list[Request], source: Source, entries: int
) -> list[tuple[str, float, float]]:
    """(name, hit ratio, ns a request) of GbCache and the installed peers, each of `entries` entries.

    Values are made beforehand, so that only the caches' own work is timed.
    """
    keys = [request.key for request in requests]
    values = {request.key: b"v" * source.size(request) for request in requests}
    budget = sum(len(k) + len(v) + 64 for k, v in values.items()) + (4 << 20)
    cache = gbcache.Cache(budget, max_entries=entries)
    rows = [("gbcache.Cache", *_time(keys, values, cache.get, cache.set))]
    rows += [(name, *_time(keys, values, get, put)) for name, get, put in _peers(entries)]
    start = time.perf_counter()
    hits = reference_lru(keys, entries)
    spent = (time.perf_counter() - start) / len(keys) * 1e9
    rows.append(("strict LRU (OrderedDict)", hits / len(keys), spent))
    return rows


def _time(
    keys: list[str],
    values: dict[str, bytes],
    get: Callable[[str], Any],
    put: Callable[[str, Any], Any],
) -> tuple[float, float]:
    misses = 0
    start = time.perf_counter()
    for key in keys:
        if get(key) is None:
            misses += 1
            with contextlib.suppress(gbcache.KeyLengthError):  # the peers take any
                put(key, values[key])
    return 1 - misses / len(keys), (time.perf_counter() - start) / len(keys) * 1e9
