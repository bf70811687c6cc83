"""Loads large enough for the second thread: what comes back, what is refused, what does not fit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from heard import SHORT

import gbcache

ENTRIES = 80_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, bytes]]]:
    """A snapshot of some 14 MB, and its pairs, least recently used first: few are long, some have a TTL."""
    path = tmp_path_factory.mktemp("pair") / "large.gbs"
    draw = random.Random(7)
    with gbcache.Cache("64MB") as cache:
        for i in range(ENTRIES):
            size = 300_000 if i == 30_000 else 9_000 if i % 20_011 == 5 else draw.randrange(240)
            cache.set(f"key{i}", draw.randbytes(size), ttl=1e6 if i % 3 == 0 else None)
        cache.save(path)
        pairs = list(cache.items())
    assert len(pairs) == ENTRIES and path.stat().st_size > 10 << 20
    return path, pairs


def test_all_of_it_is_there_in_its_order(saved: tuple[Path, list[tuple[str, bytes]]]) -> None:
    path, pairs = saved
    seen: list[tuple[int, int]] = []
    with gbcache.Cache.open(path, progress=lambda done, total: seen.append((done, total))) as cache:
        assert list(cache.items()) == pairs
        cache.check()
        left = cache.ttl("key3")
        assert left is not None and 0 < left <= 1e6 and cache.ttl("key4") is None
        cache.resize("70MB")  # the mapping is one piece still
        for i in range(20_000):
            cache[f"more{i}"] = b"m" * 100
        cache.check()
    assert seen and seen[-1][0] <= seen[-1][1] == path.stat().st_size


@pytest.mark.skipif(
    not (
        Path("/sys/kernel/mm/transparent_hugepage").exists() and Path("/proc/self/smaps").exists()
    ),
    reason="a kernel with huge pages that tells of them",
)
def test_huge_pages_are_for_the_load_alone(saved: tuple[Path, list[tuple[str, bytes]]]) -> None:
    """A set that touched the first byte of one would wait for 2 MiB of zeros."""

    def asked() -> int:
        flags = [x for x in Path("/proc/self/smaps").read_text().splitlines() if "VmFlags" in x]
        return sum("hg" in line.split() for line in flags)

    before, during = asked(), []
    with gbcache.Cache.open(saved[0], progress=lambda *_: during.append(asked())):
        assert asked() == before
    assert max(during) == before + 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_less_room_keeps_the_newest(
    saved: tuple[Path, list[tuple[str, bytes]]], share: float
) -> None:
    path, pairs = saved
    with gbcache.Cache.open(path, max_bytes=int(path.stat().st_size * share)) as cache:
        cache.check()
        kept = list(cache)
        assert 0.6 * share * ENTRIES < len(kept) <= ENTRIES
        newest = [key for key, value in pairs if len(value) < 1000][-len(kept) + 10 :]
        wanted = set(newest)
        assert [key for key in kept if key in wanted] == newest
    with gbcache.Cache.open(path, max_entries=int(ENTRIES * share)) as cache:
        cache.check()
        assert list(cache) == [key for key, _ in pairs[-int(ENTRIES * share) :]]


def test_a_part_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """Parts that are quick to lay after parts that are slow: where room ends, the thread that comes second often has
    its run already, and the first one gets none. Each such run is to be given back."""
    path = tmp_path / "uneven.gbs"
    with gbcache.Cache("64MB") as cache:
        for part in range(24):
            cache.update({f"{part}-{i}": i for i in range(9000)})
            cache.update({f"{part}x{i}": b"x" * 3900 for i in range(66)})
        cache.save(path)
    for percent in range(50, 90, 4 if SHORT else 1):
        with gbcache.Cache.open(path, max_bytes=path.stat().st_size * percent // 100) as cache:
            cache.check()


def test_a_wrong_bit_anywhere_is_refused_where_it_is(
    saved: tuple[Path, list[tuple[str, bytes]]], tmp_path: Path
) -> None:
    """The reader of sealed files, which has one thread, says what to expect."""
    path, _ = saved
    whole = bytearray(path.read_bytes())
    bad = tmp_path / "bad.gbs"
    draw = random.Random(3)
    for _ in range(12):
        at = draw.randrange(4096, len(whole))
        whole[at] ^= 1 << draw.randrange(8)
        bad.write_bytes(whole)
        bad.chmod(0o600)
        with pytest.raises(gbcache.ImageError) as sealed:
            gbcache.Cache.open(bad, "r")
        with pytest.raises(gbcache.ImageError) as copied:
            gbcache.Cache.open(bad)
        assert (copied.value.offset, copied.value.rule) == (sealed.value.offset, sealed.value.rule)
        whole[:] = path.read_bytes()


def test_a_progress_that_raises_ends_it(saved: tuple[Path, list[tuple[str, bytes]]]) -> None:
    path, _ = saved

    def no(done: int, total: int) -> None:
        raise InterruptedError(f"{done} of {total}")

    with pytest.raises(InterruptedError):
        gbcache.Cache.open(path, progress=no)
