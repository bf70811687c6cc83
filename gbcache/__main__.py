"""The house seen from a terminal: ``python -m gbcache demo``, ``replay``, ``info``, ``check``, ``dump``, ``load``."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import gbcache
from gbcache import filecli, revive
from gbcache import replay as engine


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gbcache", description=gbcache.__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    demo = verbs.add_parser("demo", help="replay the trace that comes with the package")
    run = verbs.add_parser("replay", help="replay a trace of your own")
    run.add_argument("file", type=Path, help="a key a line, or key size ttl time; .xz and .gz too")
    filecli.add_verbs(verbs)
    for verb in (demo, run):
        verb.add_argument("--max-bytes", default="6MB", help="the budget (default %(default)s)")
        verb.add_argument(
            "--ttl", type=float, default=2.0, help="seconds, where the trace gives none"
        )
        verb.add_argument("--limit", type=int, default=None, help="stop after so many requests")
        verb.add_argument(
            "--rounds", type=int, default=300, help="cost of a load: 300 is about 0.1 ms"
        )
        verb.add_argument("--no-peers", action="store_true", help="leave the installed peers out")
        verb.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


class Feed:
    """A live feed of the cache's changes: a thread that reads what happens while it happens."""

    def __init__(self, cache: gbcache.Cache) -> None:
        self.seen: Counter[str] = Counter()
        self.last: deque[gbcache.Event] = deque(maxlen=5)
        self.lost = 0
        self.watch = cache.watch()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while events := self.watch.read():
            for event in events:
                if event.kind is gbcache.Kind.LOST:
                    self.lost += event.value
                    continue
                self.seen[event.kind.value] += 1
            self.last.extend(events[-5:])

    def end(self, seq: int) -> None:
        """Once all up to the event with the number `seq` is seen."""
        until = time.monotonic() + 5
        while sum(self.seen.values()) + self.lost < seq and time.monotonic() < until:
            time.sleep(0.01)
        self.watch.close()
        self.thread.join(5)

    def line(self) -> str:
        kinds = "  ".join(f"{kind} {n:,}" for kind, n in Counter(dict(self.seen)).most_common(4))
        last = f"  last: {self.last[-1].kind} {self.last[-1].key!r}" if self.last else ""
        return f"events: {kinds}{last}"


class Progress:
    """A bar where someone looks on, a line now and then where a log does; and the feed."""

    def __init__(self, total: int, cache: gbcache.Cache, feed: Feed) -> None:
        self.total, self.cache, self.feed = total, cache, feed
        self.live = sys.stderr.isatty()
        self.told = 0.0

    def __call__(self, at: int) -> None:
        now = time.monotonic()
        if now - self.told < (0.1 if self.live else 2.0) and at < self.total:
            return
        self.told = now
        stats = self.cache.stats()
        done = at / self.total
        bar = "#" * int(30 * done)
        line = (
            f"[{bar:<30}] {done:4.0%}  hit ratio {stats.hit_ratio:.3f}  "
            f"{stats.used_bytes:>12,} of {stats.max_bytes:,} bytes  {self.feed.line():<90}"
        )
        end = "\n" if at >= self.total or not self.live else ""
        print(f"\r{line}" if self.live else line, end=end, file=sys.stderr, flush=True)


def _micro(ns: float) -> str:
    return f"{ns / 1000:,.1f} us"


def _tell(report: engine.Report, uncached_ns: float, reference: float) -> None:
    s, m = report.stats, report.memory
    n = report.requests
    print(f"\n{n:,} requests in {report.seconds:.1f} s, {s.entries:,} entries held at the end")
    print(f"  hit ratio            {report.hits / n:.4f}")
    print(f"  misses               {s.misses_absent:,} absent, {s.misses_expired:,} expired")
    print(f"  strict LRU, no TTL   {reference:.4f}   (as many bytes of keys and values, simulated)")
    print(f"  evictions, expiries  {s.evictions:,}, {s.expirations:,}")
    if report.rejects:
        print(f"  refused, too long    {report.rejects:,}")
    print("\nlatency          p50          p99        p99.9          max")
    for name, figures in (("hit", report.hit_ns), ("miss + load", report.load_ns)):
        marks = [engine.percentile(figures, p) for p in (0.5, 0.99, 0.999)]
        row = "".join(f"{_micro(v):>13}" for v in (*marks, figures[-1] if figures else 0))
        print(f"{name:<11}{row}")
    without = uncached_ns * n / 1e9
    print(
        f"without a cache: {_micro(uncached_ns)} a request, {without:.1f} s for the trace (estimated"
    )
    print(f"  from 2,000 loads): {without / report.seconds:.1f} times as long as with it")
    grown = report.rss_after - report.rss_before
    print(
        f"\nmax_bytes {s.max_bytes:,}; used_bytes {s.used_bytes:,}; the process grew by {grown:,}"
    )
    print(
        f"an entry costs {m.overhead:.1f} bytes beyond its key and value; every byte of the image:"
    )
    print(m)
    steps = max(s.max_steps.values())
    print(f"the longest any call held the lock: {steps} steps (entries, blocks, buckets touched)")


def _tell_feed(feed: Feed) -> None:
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in feed.seen.most_common())
    print(f"\nevents seen by a reader beside it: {kinds}; {feed.lost:,} lost. The last of them:")
    for event in feed.last:
        at = time.strftime("%H:%M:%S", time.localtime(event.at))
        print(f"  #{event.seq:<9,} {at}  {event.kind:<8} {event.key!r}")


def _run(args: argparse.Namespace) -> int:
    path = args.file if args.verb == "replay" else engine.sample()
    requests = engine.read_trace(path, args.limit)
    source = engine.Source(args.rounds)
    distinct = len({request.key for request in requests})
    began = time.perf_counter_ns()
    for request in requests[:2000]:
        source.load(request)
    uncached_ns = (time.perf_counter_ns() - began) / min(2000, len(requests))
    with gbcache.Cache(args.max_bytes, ttl=args.ttl, jitter=0.1, name=path.name) as cache:
        if not args.json:
            print(
                f"{path.name}: {len(requests):,} requests for {distinct:,} keys through {cache!r}"
            )
        feed = Feed(cache)
        report = engine.replay(
            requests,
            cache,
            source,
            ttl=lambda request: request.ttl or args.ttl,
            show=Progress(len(requests), cache, feed) if not args.json else lambda at: None,
        )
        feed.end(cache.last_seq)
    reference = engine.bytes_lru(requests, source, report.peak_payload) / len(requests)
    entries = max(1, distinct // 10)
    rows = [] if args.no_peers else engine.compare(requests, source, entries)
    again = revive.revive(path, requests) if args.verb == "demo" else None
    if args.json:
        print(_json(report, reference, uncached_ns, rows, feed, again))
        return 0
    _tell(report, uncached_ns, reference)
    _tell_feed(feed)
    if rows:
        print(f"\nthe same trace, {entries:,} entries, no TTL, values made beforehand:")
        print(f"{'':<26}{'hit ratio':>10}{'ns a request':>15}")
        for name, ratio, ns in rows:
            print(f"{name:<26}{ratio:>10.4f}{ns:>15.0f}")
    if again:
        revive.tell(again)
    return 0


def _json(
    report: engine.Report,
    reference: float,
    uncached_ns: float,
    rows: list[tuple[str, float, float]],
    feed: Feed,
    again: dict[str, Any] | None,
) -> str:
    return json.dumps(
        {
            "requests": report.requests,
            "hits": report.hits,
            "rejects": report.rejects,
            "seconds": report.seconds,
            "reference_hit_ratio": reference,
            "uncached_ns": uncached_ns,
            "hit_p50_ns": engine.percentile(report.hit_ns, 0.5),
            "hit_p99_ns": engine.percentile(report.hit_ns, 0.99),
            "rss_growth": report.rss_after - report.rss_before,
            "used_bytes": report.stats.used_bytes,
            "max_bytes": report.stats.max_bytes,
            "evictions": report.stats.evictions,
            "expirations": report.stats.expirations,
            "memory": dict(report.memory.parts),
            "events": {**feed.seen, "lost": feed.lost},
            "live_file": again,
            "peers": [{"name": n, "hit_ratio": h, "ns": ns} for n, h, ns in rows],
        }
    )


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr where the input is at fault."""
    args = _parser().parse_args(argv)
    try:
        return filecli.run(args) if args.verb in filecli.VERBS else _run(args)
    except (engine.TraceError, ValueError, TypeError) as error:
        print(f"gbcache {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
