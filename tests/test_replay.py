"""Traces and units: what people write, and what they write wrong."""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import sys
from collections import Counter, deque
from contextlib import redirect_stdout
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import gbcache
from gbcache.__main__ import Feed, main
from gbcache.replay import (
    Request,
    Source,
    TraceError,
    bytes_lru,
    compare,
    percentile,
    read_trace,
    reference_lru,
    replay,
    sample,
)
from gbcache.units import bytes_of, seconds_of


def written(path: Path, text: str) -> Path:
    data = text.encode()
    if path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["t.txt", "t.xz", "t.gz"])
def test_plain_keys(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "a\nb\n\na\n")
    assert read_trace(path) == [Request("a"), Request("b"), Request("a")]
    assert read_trace(path, limit=2) == [Request("a"), Request("b")]


def test_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "t", "a 10\nb 20 1.5\nc,30,0,7\n")
    assert read_trace(path) == [
        Request("a", 10), Request("b", 20, 1.5), Request("c", 30, 0, 7)
    ]  # fmt: skip
    path = written(tmp_path / "t", "# made by hand\n# fields: time key ttl size\n5 a 2 100\n")
    assert read_trace(path) == [Request("a", 100, 2, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no requests"),
        ("# only a comment\n", "no requests"),
        ("a 10\nb ten\n", "line 2.*ten"),
        ("a -1\n", "line 1.*0 or above"),
        ("a 1 nan\n", "line 1.*0 or above"),
        ("a 4294967296\n", "line 1.*below 2"),
        (f"a {10**20}\n", "line 1.*below 2"),
        ("a 1 inf\n", "line 1.*0 or above"),
        ("a 1 2 3 4\n", "line 1: 5 columns"),
        ("# fields: size ttl\n1 2\n", "line 1: fields"),
        ("# fields: key colour\na red\n", "line 1: fields"),
        ("# fields: size key\n5\n", "line 2"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_trace(written(tmp_path / "t", text))


@pytest.mark.parametrize("name", ["t.xz", "t.gz"])
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no archive")
    with pytest.raises(TraceError, match=name):
        read_trace(path)
    written(path, "some key\n" * 5000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match=name):
        read_trace(path)
    written(path, "".join(f"key {i * i % 977}\n" for i in range(5000)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)  # of its own length
    path.write_bytes(data)
    with pytest.raises(TraceError, match=name):
        read_trace(path)
    with pytest.raises(TraceError, match="missing"):
        read_trace(tmp_path / "missing")


def test_the_sample_is_real_and_small() -> None:
    assert sample().stat().st_size < 400_000
    requests = read_trace(sample(), limit=50_000)
    assert len(requests) == 50_000 and len({r.key for r in requests}) > 1000


def test_the_source_is_the_same_every_time() -> None:
    one, two = Source(rounds=1), Source(rounds=1)
    sizes = [one.size(Request(str(i))) for i in range(2000)]
    assert sizes == [two.size(Request(str(i))) for i in range(2000)]
    assert min(sizes) >= 16 and max(sizes) <= 16384 and 250 < sorted(sizes)[1000] < 350
    assert len(one.load(Request("k", 77))) == 77 and one.loads == 1


def test_a_replay_is_exact_lru() -> None:
    requests = read_trace(sample(), limit=20_000)
    for entries in (50, 1000):
        with gbcache.Cache("16MB", max_entries=entries) as cache:
            report = replay(requests, cache, Source(rounds=1), ttl=lambda request: None)
            assert report.hits == reference_lru((r.key for r in requests), entries)
            assert report.stats.hits == report.hits
            assert len(report.hit_ns) + len(report.load_ns) == report.requests == 20_000
            cache.check()


def test_the_references_agree() -> None:
    requests = [Request(str(i * i % 97), 10) for i in range(3000)]
    entries = [Request(f"{int(r.key):02}", 10) for r in requests]
    assert bytes_lru(entries, Source(), 20 * 12) == reference_lru((r.key for r in entries), 20)
    assert [percentile([1, 2, 3, 4], share) for share in (0, 0.5, 0.99, 1)] == [1, 3, 4, 4]
    assert percentile([], 0.5) == 0


def test_compare_names_everyone() -> None:
    rows = compare([Request(str(i % 40), 5) for i in range(2000)], Source(), 30)
    by_name = {name: ratio for name, ratio, _ in rows}
    assert by_name["gbcache.Cache"] == by_name["strict LRU (OrderedDict)"]


def test_the_command_line(tmp_path: Path) -> None:
    lines = "".join(f"key{i % 300} {i % 300 * 7 + 1} 60\n" for i in range(3000))
    path = written(tmp_path / "t.gz", lines)
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["replay", str(path), "--max-bytes", "200kB"]) == 0
    text = out.getvalue()
    assert "3,000 requests" in text and "hit ratio" in text and "used_bytes" in text
    for bad in (
        ["replay", str(tmp_path / "none")],
        ["replay", str(path), "--max-bytes", "5"],
        ["replay", str(path), "--max-bytes", "a lot"],
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "gbcache", *bad], capture_output=True, text=True
        )
        assert ran.returncode != 0 and "Traceback" not in ran.stderr and ran.stderr.strip()


def test_a_feed_is_told_of_while_it_grows() -> None:
    """Its thread may see something of a new kind meanwhile."""

    class Grows(Counter[str]):
        def items(self) -> Any:
            for kind, n in super().items():
                self["expire"] += 1
                yield kind, n

    feed = Feed.__new__(Feed)
    feed.seen, feed.last = Grows({"set": 2, "delete": 1}), deque()
    assert feed.line() == "events: set 2  delete 1"


# --- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [(5, 5), ("5", 5), ("256MB", 256 * 10**6), ("256MiB", 2**28), ("1.5 kB", 1500), (" 2g ", 2 * 10**9),
     ("0.5KiB", 512), ("3B", 3)],
)  # fmt: skip
def test_sizes(size: Any, bytes_: int) -> None:
    assert bytes_of(size) == bytes_


@pytest.mark.parametrize(
    "size",
    [
        "",
        "MB",
        "-5",
        "1e6",
        "5 TB",
        "5mbit",
        "0x10",
        "١٢",
        -1,
        "9" * 400 + ".0",
        "9" * 305 + ".0GB",
    ],
)
def test_no_sizes(size: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes="):
        bytes_of(size)


@pytest.mark.parametrize("size", [None, True, 5.0, b"5"])
def test_sizes_of_the_wrong_type(size: Any) -> None:
    with pytest.raises(TypeError, match=type(size).__name__):
        bytes_of(size)


def test_seconds() -> None:
    assert seconds_of(5) == seconds_of(5.0) == seconds_of(timedelta(seconds=5)) == 5
    assert seconds_of(Fraction(1, 4)) == 0.25
    huge = (10**400, -(10**400), Fraction(10**400), Fraction(-(10**400)), float("inf"))
    for bad in (0, -1, float("nan"), timedelta(0), *huge, timedelta(days=40_000)):
        with pytest.raises(ValueError, match="ttl="):
            seconds_of(bad)
    for wrong in (True, "5", None, [5]):
        with pytest.raises(TypeError, match="ttl="):
            seconds_of(wrong)  # type: ignore[arg-type]
