"""What the parts of the proof conclude from what they saw: none may say yes where nothing was shown."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROOF = Path(__file__).parent / "proof"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of tests/proof, made anew: others have such names, too."""
    monkeypatch.syspath_prepend(str(PROOF))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(PROOF)):
            del sys.modules[name]


@pytest.fixture
def said(part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    made = part("said")
    monkeypatch.setattr(made, "KEPT", tmp_path / "build" / "proof")
    return made


def test_no_row_is_no_yes(said: Any) -> None:
    assert said.verdict() == 1
    said.row("a goal", "a figure", True)
    assert said.verdict() == 0
    said.row("another", "a figure", False)
    assert said.verdict() == 1


def test_it_is_replayed_in_its_build(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    monkeypatch.setenv("LD_PRELOAD", "a.so b.so")
    assert "ASAN_OPTIONS=detect_leaks=0 'LD_PRELOAD=a.so b.so' python" in said.replay()


def test_a_table_of_what_was_skipped_is_no_yes(
    part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, said = part("table"), part("said")
    monkeypatch.setattr(said, "KEPT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["table.py", "--only", "io"])
    for good, status in [(["skipped"], 1), (["skipped", "yes"], 0), (["yes", "NO"], 1), ([], 1)]:
        rows = [table.Row("goal", "figure", one, "make", 1) for one in good]
        monkeypatch.setattr(table, "run_all", lambda *_, rows=rows: {"io": rows})
        assert table.main() == status, good


STACK = """
    #0 gb_lock /src/csrc/lock.c:10 (_packed.so+0x1)

  Mutex M1 acquired here while holding mutex M0 in main thread:
    #0 pthread_mutex_lock <null> (python3.13t+0x2)
    #1 {} (python3.13t+0x3)
"""
RACE = """
  Write of size 8 at 0x7b by thread T1:
    #0 {} (python3.13t+0x3)
  Previous read of size 8 at 0x7b by main thread:
    #0 list_item <null> (python3.13t+0x2)

  Thread T1 'gbcache' (tid=1, running) created by main thread at:
    #0 begin /src/gbcache/engine.c:5 (engine.so+0x3)
"""


@pytest.mark.parametrize(
    ("kind", "report", "frame", "ours"),
    [
        ("data race", RACE, "list_append <null>", False),
        ("data race", RACE, "gb_door_enter /src/gbcache/_door.c:9", True),
        ("lock-order-inversion (potential deadlock)", STACK, "gb_door_enter /src/gbcache/_door.c:9", True),
        ("thread leak", RACE, "list_append <null>", True),
        ("lock-order-inversion (potential deadlock)", STACK.replace("csrc", "Python"), "take_gil <null>", False),
    ],
)  # fmt: skip
def test_only_races_are_given_away(
    part: Any, kind: str, report: str, frame: str, ours: bool
) -> None:
    """What is of locks and threads is ours, wherever in it we are named."""
    text = f"WARNING: ThreadSanitizer: {kind} (pid=1){report.format(frame)}"
    assert part("threads").ours(text) is ours


def test_the_program_of_the_threads_is_of_this_core(part: Any) -> None:
    """It is built by `make proof` alone, and the core goes on."""
    root, threads = PROOF.parents[1], part("threads")
    assert all((root / one.file).read_text().count(one.old) == 1 for one in threads.PLANTS)
    rooms = [f"-I{root / room}" for room in ("csrc", "gbcache", "tests/native")]
    call = ["gcc", "-std=c11", "-fsyntax-only", "-Wall", "-Werror", "-Wno-unused-function", *rooms]
    ran = subprocess.run([*call, str(PROOF / "threads.c")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


RAISED = """Traceback (most recent call last):
  File "<string>", line 19, in <module>
KeyError: 'on purpose'
"""


def test_an_exit_says_what_was_raised_on_purpose_alone(part: Any) -> None:
    good = part("fork").as_it_should
    assert good("an exception", 1, RAISED) and good("sys.exit", 0, "")
    assert not good("an exception", 1, "") and not good("an exception", 0, RAISED)
    assert not good("an exception", 1, RAISED.replace("on purpose", "other"))
    assert not good("an exception", 1, f"Exception ignored in: <x>\n{RAISED}")
    assert not good("an exception", 1, RAISED + RAISED)
    assert not good("sys.exit", 0, "a word")


@pytest.mark.parametrize("name", ["hostile", "starve"])
def test_a_name_that_is_none_is_an_error(name: str) -> None:
    path = PROOF / "hostile.py" if name == "hostile" else PROOF.parent / "starve.py"
    call = [
        sys.executable,
        str(path),
        *(["python"] if name == "starve" else []),
        "--only",
        "no such case",
    ]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "no such case" in ran.stderr, ran.stderr
