"""Whether the README shows what `results/` has: ``python -m bench.readme [--write]``.

Every row of the tables under "Numbers", and a few sentences, name the kept figures they were taken from. A number is
stale if the kept figure, rounded to as many digits, is another one; so is a verdict ("not met") that the
figures do not bear out, a row that names no source, and a plot drawn from older data. ``--write`` puts the kept
figures into the README, to as many digits as are there; verdicts, and what explains them, are for somebody to write.
"""

from __future__ import annotations

import argparse
import re
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from bench import plots
from bench.report import RESULTS, load

__all__ = ["check", "main", "rows"]

README = Path(__file__).resolve().parent.parent / "README.md"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")

# Of each row its beginning, and for each number in it in turn: bench: what @which of the row's figures (else `got`)
# * what it is multiplied with. Where a row says it in words, the aims of its sources must be met.
ROWS = """
`get` hit, 1000 hot keys, to `dict.get`
    ops: get hit, 1000 hot keys / d.get
the same: cachebox, lru-dict, cachetools, moka-py, theine
    ops: get hit, 1000 hot keys / d.get > cachebox.LRUCache
    ops: get hit, 1000 hot keys / d.get > lru-dict LRU
    ops: get hit, 1000 hot keys / d.get > cachetools.LRUCache
    ops: get hit, 1000 hot keys / d.get > moka-py Moka
    ops: get hit, 1000 hot keys / d.get > theine Cache
servers and files, one key at a time
    outside: get hit, 1000 keys, one at a time > LMDB
    outside: get hit, 1000 keys, one at a time > diskcache Cache
    outside: get hit, 1000 keys, one at a time > Redis or Valkey
    outside: get hit, 1000 keys, one at a time > memcached
the same, overwriting, to our `set`
    outside: set, overwriting, 1000 keys, one at a time > LMDB
    outside: set, overwriting, 1000 keys, one at a time > diskcache Cache
    outside: set, overwriting, 1000 keys, one at a time > Redis or Valkey
    outside: set, overwriting, 1000 keys, one at a time > memcached
`get` hit, 100,000 keys, zipf(1.0)
    ops: get hit, 100,000 zipf(1.0) / d.get
`get` hit, 1,000,000 keys, uniform
    ops: get hit, 1,000,000 uniform / d.get
miss, 1000 / 100,000 / 1,000,000 keys, to a miss of `dict.get`
    ops: miss, 1000 hot keys / d.get miss
    ops: miss, 100,000 zipf(1.0) / d.get miss
    ops: miss, 1,000,000 uniform / d.get miss
`get_many` of 256 among 1,000,000, to a list comprehension
    ops: get_many of 256, 1M uniform / list comprehension
overwrite, 100,000 keys, to cachebox.LRUCache
    ops: overwrite / cachebox.LRU
insert + evict, 100,000 full, to cachebox.LRUCache
    ops: insert + evict / cachebox.LRU
`set` / `get` with a TTL, to without
    ops: set with a TTL / without
    ops: get of an entry with a TTL / without
bytes an entry beyond key and value, by RSS, 5,000,000
    memory: overhead, 5,000,000 x 8 B, by RSS
    memory: overhead, 5,000,000 x 100 B, by RSS
the same with a TTL
    memory: overhead, 5,000,000 x 8 B, TTL, by RSS
    memory: overhead, 5,000,000 x 100 B, TTL, by RSS
key and value bytes held in 100 MB
    memory: key + value held in 100 MB, 100 B * 100
    memory: key + value held in 100 MB, 1,000 B * 100
    memory: key + value held in 100 MB, 10,000 B * 100
payload after small -> large -> small, to a fresh cache
    budget: payload after a size flip / fresh * 100
the most steps a lock hold took
    latency: growth to 5,000,000: max_steps of a lock hold
    latency: 1,000,000 due at one instant: max_steps of a lock hold
the slowest call, best of five runs
    latency: growth to 5,000,000: max, best of 5 * 0.001
    latency: 1,000,000 due at one instant: max, best of 5 * 0.001
growing to 5,000,000: dict, cachebox, lru-dict, cachetools
    latency: 1,000,000 due at one instant: max, best of 5 > dict: growth to 5,000,000: max * 0.001
    latency: 1,000,000 due at one instant: max, best of 5 > cachebox: growth to 5,000,000: max * 0.001
    latency: 1,000,000 due at one instant: max, best of 5 > lru-dict: growth to 5,000,000: max * 0.001
    latency: 1,000,000 due at one instant: max, best of 5 > cachetools: growth to 5,000,000: max * 0.001
p99.99 of a call
    latency: growth to 5,000,000: p99.99
    latency: 1,000,000 due at one instant: p99.99
`get` / `c[k]`, 1000 hot keys
    objects: get, 1000 hot keys / dict
    objects: get, 1000 hot keys / dict > cachebox.LRUCache
    objects: c[k], 1000 hot keys / dict
`get`, 100,000 zipf(1.0) / 1,000,000 uniform
    objects: get, 100,000 zipf(1.0) / dict
    objects: get, 100,000 zipf(1.0) / dict > cachebox.LRUCache
    objects: get, 1,000,000 uniform / dict
    objects: get, 1,000,000 uniform / dict > cachebox.LRUCache
miss, 1000 / 100,000 / 1,000,000 keys |
    objects: miss, 1000 hot keys / dict
    objects: miss, 100,000 zipf(1.0) / dict
    objects: miss, 1,000,000 uniform / dict
    objects: miss, 1000 hot keys / dict > cachebox.LRUCache
    objects: miss, 100,000 zipf(1.0) / dict > cachebox.LRUCache
    objects: miss, 1,000,000 uniform / dict > cachebox.LRUCache
overwrite, 100,000 keys |
    objects: overwrite / dict
    objects: overwrite / dict > cachebox.LRUCache
insert + evict, 100,000 full; dict
    objects: insert + evict, set + del of the oldest / dict
    objects: insert + evict, set + del of the oldest / dict > cachebox.LRUCache
`set` / `get` with the cache's TTL
    objects: set with a TTL, 100,000 / dict
    objects: get with a TTL, 100,000 / dict
`get_many` of 256 among 1,000,000, to a loop
    objects: get_many of 256, 1M uniform, a loop over d.get / dict
mixed 90/10
    objects: mixed 90/10, zipf over 1,000,000, capacity 100,000; an unbounded / dict
two threads' throughput
    objects: two threads' throughput to one's, to dict's
bytes an entry beyond key and value, 1,000,000, by RSS; with a TTL
    objects: bytes an entry over key and value, 1,000,000, by RSS
    objects: bytes an entry over key and value, 1,000,000, TTL, by RSS
the slowest insert
    objects: slowest insert, growth to 2,000,000, best of 5 * 0.001
    objects: slowest insert, inserts, 1M due at once, 1,000,000, best of 5 * 0.001
`memoize` hit, one int
    memo: hit, one int / functools
    memo: hit, one int / functools > cachebox.cached
    memo: hit, one int / functools > memoize(ttl=60)
`memoize` hit, an int and a str
    memo: hit, an int and a str / functools
    memo: hit, a method / functools
`memoize` miss
    memo: miss, one flight per key / functools @ns * 0.001
    memo: hit, one int / functools > memoize(cache=Cache) @ns * 0.001
instructions of a `set` nobody hears of
    events: instructions of a set, nobody listening, to a build without events
events a second to one batch reader
    events: events a second to one batch reader, every Event made * 0.000001
`set` throughput, recorded but not read
    events: set throughput, recorded, to none listening
the same, a reader of batches that keeps up
    events: set throughput, batches, their keys, to none listening
    events: set throughput, batches, every Event, to none listening
the same, a Python call an event
    events: set throughput, a call an event, to none listening
20,000 short TTLs beside 1,000,000
    events: expire events delivered of 20,000 beside 1,000,000
their lateness, p99 / max
    events: expire events delivered of 20,000 beside 1,000,000 > lateness p99
    events: expire events delivered of 20,000 beside 1,000,000 > lateness max
`async for`: from a set
    events: async for: from a set to its event, p99 @p50
    events: async for: from a set to its event, p99
a stalled subscriber
    events: stalled subscriber: lost + delivered, to emitted > events that are neither
writers' time beside it
    events: stalled subscriber: lost + delivered, to emitted > writers' time to without it
4 threads x 250,000 on 16 keys
    events: 4 threads x 250,000 on 16 keys: events that do not follow
save to tmpfs
    persist: save 5,000,000 x 100 B to tmpfs
    persist: save 5,000,000 x 100 B to tmpfs @median
save to disk
    persist: save to disk, rate as a share of a copy and fsync
memory during a save
    persist: memory during a save, of max_bytes + 2 % + 32 MiB
p99.9 of an operation during a save
    persist: p99.9 of an operation during a save, to idle
longest pause a save adds
    persist: longest pause a save adds, best of 5
open, `"r+"`, closed cleanly
    persist: open 1,000,000 clean, mode='r+', to the first hit
    persist: open 5,000,000 clean, mode='r+', to the first hit
open, `"r"`, all verified
    persist: open 1,000,000, mode='r', all verified
    persist: open 5,000,000, mode='r', all verified
open, `"copy"`, all verified
    persist: open 1,000,000, mode='copy', all verified
    persist: open 5,000,000, mode='copy', all verified
recovery after kill -9
    persist: recovery of 1,000,000 after kill -9
    persist: recovery of 5,000,000 after kill -9
`set` on a live file to in memory
    persist: set on a live file to set in memory, 1,000 hot keys
    persist: set on a live file to set in memory, new keys
    persist: set on a live file to set in memory, 300,000 keys
near hit of a `Tiered`
    tier: near hit of a Tiered(Cache) / Cache.get
    tier: near hit of a Tiered(ObjectCache) / ObjectCache.get
far read, `Disk`, 100 B
    far: get_many of 100, to bare LMDB in one transaction
    far: get_many of 1, to bare LMDB in one transaction
the same to diskcache
    far: get_many of 100, to diskcache
    far: get_many of 1, to diskcache
acknowledged writes, `sync="always"`
    far: always, one writer, to a loop of fdatasync
    far: always, 16 writers, to a loop of fdatasync
the same, `sync="interval"`, one writer
    far: interval, one writer
write-behind over a `Disk`
    tier: write-behind over a Disk, set_many * 1000
    tier: write-behind over a Disk, set * 1000
oldest write at risk meanwhile
    tier: write-behind over a Disk, set_many @at_risk_ms_most
zipf(0.9) over ten times what memory holds
    tier: zipf(0.9), 10x more data than memory: hit ratio of memory
a read that memory could not answer
    tier: zipf(0.9), 10x more data than memory: hit ratio of memory > a far read, median
    tier: zipf(0.9), 10x more data than memory: hit ratio of memory > a far read, p99
    tier: zipf(0.9), 10x more data than memory: hit ratio of memory > entries that were missing
opening a `Disk`
    far: open, all checked
`Valkey`: one key / 100 keys
    valkey: get_many of 1 to MULTI GET PTTL EXEC
    valkey: get_many of 100 to MULTI GET PTTL EXEC
a change by another process
    valkey: a change to another process's changed(), median * 0.001
    valkey: the same, p99 * 0.001
changes a process can hear of
    valkey: changes a process can hear of, of one core * 1000
"""

# Sentences: what stands around the numbers ("#" for each), and their sources.
SENTENCES = """
grew the process by # MB at its peak
    budget: process growth, 8 B
began to go # ms after the deadline and were gone after # ms
    expire: 1,000,000 due, no traffic: first bytes back
    expire: 1,000,000 due, no traffic: all back
to our `get` (# ns)
    outside: get hit, 1000 keys, one at a time
to our `set` (# ns)
    outside: set, overwriting, 1000 keys, one at a time
For a hot 100-byte value a `get` costs # times a `dict.get`
    ops: get hit, 1000 hot keys / d.get
an empty loop as long: # us
    latency: 1,000,000 due at one instant: max, best of 5 > control, an empty operation as long: p99.99
to none listening (# ns)
    events: set throughput, recorded, to none listening @none_ns
to a loop of fdatasync (#/s)
    far: always, one writer, to a loop of fdatasync @loop_per_s
beside a `set` of # ns
    events: set throughput, recorded, to none listening @none_ns
back to the last save | back to the last save | gone | no | - | # us
    persist: set on a live file to set in memory, new keys @ns * 0.001
if it was not opened since | gone | no | - | # us
    persist: set on a live file to set in memory, new keys @ns * 0.001
**still there** | no | # us | one fdatasync (# ms here), shared by threads; `interval`: # us
    tier: zipf(0.9), 10x more data than memory: hit ratio of memory > a far read, median
    far: always, one writer, to a loop of fdatasync @loop_us * 0.001
    far: interval, one writer @us
that, and the interval | **still there** | no | # us | # us
    tier: zipf(0.9), 10x more data than memory: hit ratio of memory > a far read, median
    tier: write-behind over a Disk, set @us
told, in # ms (median), # ms at worst | # us (loopback) | # us (loopback)
    valkey: a change to another process's changed(), median * 0.001
    valkey: the same, p99 @max * 0.001
    valkey: get_many of 1 to MULTI GET PTTL EXEC @us
    valkey: put_many of 1 to SET PX @us
an index of # kB at its first call
    memo: bytes an instance with a memoized method * 0.001
A miss of `memoize` costs # us more than one of `lru_cache`
    memo: miss, one flight per key / functools @more_us
"""


class Source:
    """A kept figure, and whether its aim was met."""

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"(\w+): (.*?)(?: @(\w+))?(?: \* ([\d.]+))?", text)
        assert found, text
        bench, what, field, times = found.groups()
        rows = _kept(bench)
        if what not in rows:
            raise LookupError(f"results/{bench}.json has no row {what!r}")
        row = rows[what]
        self.value = Decimal(repr(row[field or "got"])) * Decimal(times or 1)
        self.met: bool | None = row["met"]

    def said(self, number: str) -> bool:
        """Whether this is that number, to the digits it has."""
        return abs(self.value - Decimal(number.replace(",", ""))) <= unit_of(number) / 2

    def shown(self, number: str) -> str:
        """This, to the digits that number has."""
        if self.said(number):
            return number
        unit = unit_of(number)
        return f"{(self.value / unit).to_integral_value(ROUND_HALF_EVEN) * unit:,f}"


def unit_of(number: str) -> Decimal:
    """The worth of its last digit: 90,000 has as many as 9.0, whole ones their last zeros."""
    plain = number.replace(",", "")
    if "." in plain or not int(plain):
        return Decimal(1).scaleb(-len(plain.partition(".")[2]))
    return Decimal(10) ** (len(plain) - len(plain.rstrip("0")))


_loaded: dict[str, dict[str, Any]] = {}


def _kept(bench: str) -> dict[str, Any]:
    if bench not in _loaded:
        _loaded[bench] = load(bench)
    return _loaded[bench]


def parsed(text: str) -> dict[str, list[str]]:
    """Beginnings or sentences, and their sources."""
    out: dict[str, list[str]] = {}
    last = ""
    for line in text.strip().splitlines():
        if line.startswith("    "):
            out[last].append(line.strip())
        else:
            last = line
            assert last not in out, f"twice: {last}"
            out[last] = []
    return out


def compare(where: str, numbers: list[str], sources: list[str]) -> tuple[list[str], list[bool]]:
    """What is stale, and the verdicts of the aims."""
    if not numbers:
        met = [bool(Source(text).met) for text in sources]
        return ([] if all(met) else [f"{where}: its aims are not met"]), met
    if len(numbers) != len(sources):
        return [f"{where}: {len(numbers)} numbers, {len(sources)} sources"], []
    out: list[str] = []
    met = []
    for number, text in zip(numbers, sources, strict=True):
        try:
            source = Source(text)
        except LookupError as error:
            out.append(f"{where}: {error.args[0]}")
            continue
        if not source.said(number):
            out.append(f"{where}: says {number}, kept is {source.value:.4f} ({text})")
        if source.met is not None and "@" not in text:
            met.append(source.met)
    return out, met


def rows(text: str) -> list[tuple[str, str, str, str]]:
    """The tables under "Numbers": each row, and its cells."""
    numbers = text.split("\n## Numbers", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    out = []
    for row in numbers.splitlines():
        cells = [cell.strip() for cell in row[1:-1].split(" | ")]
        if row.startswith("| ") and cells[0] != "what":
            out.append((row, *[*cells, "", ""][:3]))
    return out


def begin_of(row: str, known: dict[str, list[str]]) -> str:
    """The beginning in ROWS that is this row's; empty: there is none."""
    return max((begin for begin in known if row.startswith(f"| {begin}")), key=len, default="")


def sentence_in(text: str, sentence: str) -> re.Match[str] | None:
    pattern = r"\s+".join(map(re.escape, sentence.split())).replace(r"\#", f"({NUMBER.pattern})")
    return re.search(pattern, text)


def written(text: str) -> str:
    """This README with the figures that are kept; a row with other numbers than sources stays, for `check` to tell of.
    LookupError: a figure is not kept."""
    known = parsed(ROWS)
    for row, _, figure, _ in rows(text):
        named = known.get(begin_of(row, known), [])
        if len(named) == len(NUMBER.findall(figure)):
            sources = map(Source, named)
            new = NUMBER.sub(lambda found, s=sources: next(s).shown(found[0]), figure)  # type: ignore[misc]
            text = text.replace(row, row.replace(f" | {figure} | ", f" | {new} | ", 1), 1)
    for sentence, sources_ in parsed(SENTENCES).items():
        found = sentence_in(text, sentence)
        if found is None:
            continue
        for i in reversed(range(len(sources_))):
            begin, end = found.span(i + 1)
            text = text[:begin] + Source(sources_[i]).shown(found[i + 1]) + text[end:]
    return text


def check(text: str) -> list[str]:
    """A line for everything in this README that the kept figures do not bear out."""
    out = []
    known = parsed(ROWS)
    used = set()
    for row, what, figure, aim in rows(text):
        begin = begin_of(row, known)
        if not begin:
            out.append(f"{what}: bench/readme.py knows no source of it")
            continue
        used.add(begin)
        stale, met = compare(what, NUMBER.findall(figure), known[begin])
        out += stale
        if aim and met and all(met) == ("not met" in aim):
            out.append(f"{what}: says {aim!r}; of its aims {sum(met)} of {len(met)} are met")
    out += [f"{begin}: no such row in the README" for begin in known if begin not in used]
    for sentence, sources in parsed(SENTENCES).items():
        found = sentence_in(text, sentence)
        if found:
            out += compare(sentence, list(found.groups()), sources)[0]
        else:
            out.append(f"{sentence!r}: no such sentence in the README")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="the kept figures into the README")
    if parser.parse_args().write:
        README.write_text(written(README.read_text()))
    out = check(README.read_text()) + plots.stale()
    shown = set(re.findall(r"bench/results/([\w-]+)\.png", README.read_text()))
    out += [
        f"{name}.png: the README shows it, nothing draws it"
        for name in sorted(shown - {*plots.PLOTS})
    ]
    print("\n".join(out))
    print(f"readme: {len(out)} stale" if out else f"readme: all of it is what {RESULTS.name}/ has")
    return 1 if out else 0


if __name__ == "__main__":
    raise SystemExit(main())
