"""``python -m gbcache info|check|dump|load``."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from gbcache import Cache
from gbcache.__main__ import main


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    cache = Cache("1MB")
    for i in range(20):
        cache[f"key {i}"] = i
    cache[("t", 1.5)] = {"d": Decimal("1.1"), "s": {1, 2}, "when": datetime.date(2026, 1, 2)}
    cache[b"raw"], cache[7], cache["odd"] = b"\0\xff", (1, [2]), {"$": 1}
    cache["inf"], cache["none"], cache["text"] = float("inf"), None, "ü \n \ud800"
    cache.set("ttl", "v", ttl=500)
    cache.save(tmp_path / "a.gbs")
    return tmp_path / "a.gbs"


def test_info(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(saved), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "snapshot" and said["entries"] == 28 and said["codec"] == "typed"
    assert said["file_bytes"] == saved.stat().st_size and 0 <= said["age_seconds"] < 100
    assert main(["info", str(saved)]) == 0
    assert "max_bytes    1,000,000" in capsys.readouterr().out


def test_a_live_file_open_and_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gbc"
    with Cache("1MB", path=path) as cache:
        cache["k"] = "v"
        assert main(["info", str(path), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["open_now"] and said["owner"] == os.getpid() and said["entries"] == 1
        assert main(["check", str(path)]) == 3
        assert main(["dump", str(path)]) == 2
    before = path.read_bytes()
    for verb, says in (
        ("info", "closed"),
        ("check", "sound (clean), 1 entries"),
        ("dump", "'k': 'v'"),
    ):
        assert main([verb, str(path)]) == 0
        assert says in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.parametrize("closed", [False, True])
def test_a_live_file_that_is_opened_while_it_is_copied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    closed: bool,
) -> None:
    """What was copied may be torn: nothing is said of it."""
    path, copies = tmp_path / "a.gbc", list[Cache]()
    Cache("1MB", path=path).close()

    def copyfile(source: Path, copy: Path) -> None:
        whole(source, copy)
        if source == path:
            copies.append(Cache("1MB", path=path))
            copies[-1]["k"] = "v"
            if closed:
                copies[-1].close()

    whole = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    try:
        assert main(["check", str(path)]) == 3 and len(copies) == 1
        if not closed:
            copies[0].close()
        assert main(["dump", str(path)]) == 2 and len(copies) == 2
    finally:
        for cache in copies:
            cache.close()
    assert "open in another process" in capsys.readouterr().err


def test_check_says_what_is_wrong(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(saved)]) == 0
    data = bytearray(saved.read_bytes())
    data[5000] ^= 4
    saved.write_bytes(data)
    assert main(["check", str(saved)]) == 1
    assert "checksum" in capsys.readouterr().out
    assert main(["check", str(saved), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "file": str(saved),
        "sound": False,
        "offset": 4096,
        "rule": "a frame's checksum is right",
    }


def test_dump_and_load_give_the_same(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert main(["dump", str(saved), "--json"]) == 0
    lines = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    again = tmp_path / "b.gbs"
    assert main(["load", str(again)]) == 0
    with Cache.open(saved) as first, Cache.open(again) as second:
        assert [(k, v, type(v)) for k, v in first.items()] == [
            (k, v, type(v)) for k, v in second.items()
        ]
        assert abs((first.ttl("ttl") or 0) - (second.ttl("ttl") or 0)) < 1
    assert main(["load", str(again)]) == 2
    assert "--force" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(lines + "nonsense\n"))
    assert main(["load", str(again), "--force"]) == 2
    assert "line 29" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.stdin",
        io.StringIO("\n".join([json.dumps({"key": i, "value": "x" * 900}) for i in range(900)])),
    )
    assert main(["load", str(again), "--force", "--max-bytes", "100kB"]) == 2
    assert "--max-bytes" in capsys.readouterr().err


def test_dump_for_people(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(saved), "--limit", "2"]) == 0
    assert capsys.readouterr().out == "'key 0': 0\n'key 1': 1\n"
    assert main(["dump", str(saved), "--keys"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "'key 0'" and out[-1].startswith("'ttl'  (") and len(out) == 28


def test_what_is_over_between_two_looks_is_left_out(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ttl = Cache.ttl

    def looked(cache: Cache, key: object) -> float | None:
        if key == "ttl":
            cache.pop(key)
        return ttl(cache, key)

    monkeypatch.setattr(Cache, "ttl", looked)
    assert main(["dump", str(saved), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 27 and all(line["ttl"] is None for line in lines)


def test_what_python_would_not_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int of more digits than it converts: the others are dumped, and it is, too."""
    with Cache("1MB") as cache:
        cache["long"], cache["nested"], cache["last"] = 10**5000, [2**64, -(2**63) - 1], 2**64 - 1
        cache.save(tmp_path / "a.gbs")
    assert main(["dump", str(tmp_path / "a.gbs")]) == 0
    assert "'last': 18446744073709551615" in capsys.readouterr().out
    assert main(["dump", str(tmp_path / "a.gbs"), "--json"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(capsys.readouterr().out))
    assert main(["load", str(tmp_path / "b.gbs")]) == 0
    with Cache.open(tmp_path / "b.gbs") as again:
        assert again["long"] == 10**5000 and again["nested"] == [2**64, -(2**63) - 1]
        assert again["last"] == 2**64 - 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"' + "x" * 300_000 + '"', "line 1: a value of 300,000 bytes"),
        ("[" * 20_000, "line 1 is not one"),
    ],
    ids=["long", "deep"],
)
def test_a_line_that_is_not_to_be_had(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    said: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f'{{"key": "k", "value": {value}}}\n'))
    assert main(["load", str(tmp_path / "b.gbs"), "--max-bytes", "100kB"]) == 2
    assert said.replace(",", "") in capsys.readouterr().err and not (tmp_path / "b.gbs").exists()


def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("info", "check", "dump"):
        assert main([verb, str(tmp_path / "nowhere")]) == 2
        assert main([verb, str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert "Traceback" not in err and len(err.splitlines()) == 2
    cache = Cache("100kB", codec="pickle")
    cache["k"] = {1: {2}}
    cache.save(tmp_path / "p.gbs")
    assert main(["dump", str(tmp_path / "p.gbs")]) == 1
    assert "pickle" in capsys.readouterr().err
    assert main(["dump", str(tmp_path / "p.gbs"), "--codec", "pickle"]) == 0


def test_as_a_command(saved: Path) -> None:
    call = [sys.executable, "-m", "gbcache", "dump", str(saved)]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 28 and not ran.stderr
    piped = subprocess.run([*call, "--json"], capture_output=True, timeout=60)
    assert piped.returncode == 0


DAMAGED = """
import io, os, random, sys, contextlib
from gbcache.__main__ import main
path, seed = sys.argv[1], int(sys.argv[2])
dice, sound = random.Random(seed), open(path, "rb").read()
codes = {}
for turn in range(int(sys.argv[3])):
    data = bytearray(sound)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(9208, len(data) - 4) & ~3
        word = dice.choice([dice.getrandbits(32), dice.randrange(len(data) // 8), 0])
        data[at : at + 4] = word.to_bytes(4, "little")
    with open(path, "r+b") as file:
        file.write(data)
    for verb in ("check", "dump"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main([verb, path])
        codes[verb, code] = codes.get((verb, code), 0) + 1
print(codes)
"""


def test_closed_live_files_that_are_damaged(tmp_path: Path) -> None:
    """Their superblock is right, so an opening believes the rest: these verbs do not."""
    path = tmp_path / "a.gbc"
    with Cache("100kB", path=path, events="16kB") as cache:
        for i in range(500):
            cache.set(f"key {i}", (i, f"v{i}", b"x" * (i % 60))[i % 3], ttl=9000 if i % 2 else None)
        cache["long"] = "0123456789" * 700
    turns = "100" if os.environ.get("GB_SLICE") == "short" else "300"
    call = [sys.executable, "-c", DAMAGED, str(path), "5", turns]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = eval(ran.stdout)
    assert found["check", 1] > int(turns) // 3 and {code for _, code in found} <= {0, 1, 2}


def test_halves_of_a_character_stay_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lone surrogates are no character; JSON's escape of them is that of one."""
    halves, whole = "\ud83d" + "\ude00", "\U0001f600"
    assert halves != whole and json.loads(json.dumps(halves)) == whole
    with Cache("1MB") as cache:
        for key in (halves, whole, (halves, whole)):
            cache[key] = [halves, whole, {halves: whole, whole: halves}]
        cache["alone"], cache["whole"] = halves, whole
        cache.save(tmp_path / "a.gbs")
        held = dict(cache.items())
    assert main(["dump", str(tmp_path / "a.gbs"), "--json"]) == 0
    lines = capsys.readouterr().out
    assert json.loads(lines.splitlines()[-1]) == {"key": "whole", "value": whole, "ttl": None}
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["load", str(tmp_path / "b.gbs")]) == 0
    with Cache.open(tmp_path / "b.gbs") as again:
        assert dict(again.items()) == held
