"""The parts of bench/ that judge: what they let pass must be right, and what is wrong they must find."""

from __future__ import annotations

import itertools
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest

from bench import gate
from bench.gate import moved
from bench.readme import NUMBER, README, Source, check, rows, written
from bench.traces import optimum


def by_all_ways(keys: list[int], entries: int) -> float:
    """The most hits of any choice of what to keep, by trying every one."""
    states = {frozenset[int](): 0}
    for key in keys:
        then: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            got = hits + (key in held)
            for some in itertools.combinations(held | {key}, min(entries, len(held | {key}))):
                new = frozenset(some)
                then[new] = max(then.get(new, -1), got)
        states = then
    return max(states.values()) / len(keys)


def test_the_optimum_is_the_optimum() -> None:
    roll = random.Random(7)
    for _ in range(200):
        keys = [roll.randrange(6) for _ in range(roll.randrange(1, 14))]
        entries = roll.randrange(1, 5)
        assert optimum(keys, entries) == by_all_ways(keys, entries), (keys, entries)


def test_the_gate_finds_what_moved() -> None:
    was = {"get": 700.0, "set": 1400.0}
    assert moved({"get": 706.9, "set": 1386.1}, was) == []
    assert len(moved({"get": 707.1, "set": 1400.0}, was)) == 1
    assert len(moved({"get": 700.0, "set": 1385.9}, was)) == 1  # faster: to be accepted
    assert len(moved({"get": 700.0}, was)) == 1  # no longer counted
    assert len(moved({**was, "add": 1.0}, was)) == 1  # counted, and not committed


def test_the_gate_accepts_what_is_usual_not_one_odd_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {
        layout: {"get": 700.0 + n, "encode": 30_400.0 - 190 * (n > 0)}
        for n, layout in enumerate(gate.LAYOUTS)
    }
    monkeypatch.setattr(gate, "count", lambda place, layout: odd[layout])
    assert gate.usual(Path()) == {"get": 701.5, "encode": 30_210.0}


def test_a_stale_figure_of_the_readme_is_found() -> None:
    text = README.read_text()
    head, numbers = text.split("\n## Numbers", 1)
    before, planted = {*check(text)}, 0
    for row, what, figure, aim in rows(text):
        number = NUMBER.search(figure)
        changed = [f"| not {what} | {figure} | {aim} |"]  # a row of no source
        if number:
            other = figure[: number.start()] + "987" + figure[number.end() :]
            changed.append(f"| {what} | {other} | {aim} |")
        stale = any(line.startswith(f"{what}: says {aim!r}") for line in before)
        if aim.startswith(("<", ">", "all")) and not stale:  # another verdict
            other = aim.replace("not met", "") if "not met" in aim else f"{aim}; **not met**"
            changed.append(f"| {what} | {figure} | {other} |")
        for one in changed:
            assert one != row
            assert {*check(f"{head}\n## Numbers{numbers.replace(row, one)}")} - before, one
            planted += 1
    assert planted > 100


def test_the_kept_figures_are_written_into_the_readme() -> None:
    text = written(README.read_text())
    assert not [line for line in check(text) if ", kept is " in line]
    row, _, figure, _ = rows(text)[0]
    number = NUMBER.search(figure)
    assert number
    other = figure.replace(number[0], re.sub(r"\d", "9", number[0]), 1)
    tampered = text.replace(row, row.replace(figure, other))
    assert tampered != text
    assert written(tampered) == text


def test_a_figure_is_written_to_the_digits_there_were() -> None:
    source = Source("memory: overhead, 5,000,000 x 8 B, by RSS")
    source.value = Decimal("108046.6788")
    assert source.shown("90,000") == "110,000" and source.shown("107") == "108,047"
    source.value = Decimal("0.0828")
    assert source.shown("0.19") == "0.08" and source.shown("0") == "0"
