"""Reference drift: every public call and error path, a thousand times, under a debug interpreter.

`make drift`. Installs Debian's python3.11-dbg where it is missing (as root), builds the extension for it into
build/dbg, and measures `sys.gettotalrefcount()`: what a call leaves behind is 0. Each call has a forked
child to itself, so that one that crashes (a debug interpreter asserts a lot) names itself too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drift_above import flights, memoized, tiers
from drift_calls import Call, particular, plain

ROOT = Path(__file__).resolve().parent.parent
DEBUG = "python3.11-dbg"
BUILD = ROOT / "build" / "dbg"
REPEATS = 1000
LIMIT = 0.01
KEPT: list[Any] = []
"""Event loops and pools that a child makes and leaves to its end."""


def bootstrap() -> None:
    """Builds for the debug interpreter, then becomes it."""
    if not shutil.which(DEBUG):
        if os.geteuid() != 0:
            raise SystemExit(
                f"drift: {DEBUG} is missing: apt-get install {DEBUG} libpython3.11-dev"
            )
        subprocess.run(["apt-get", "update", "-q"], check=True)
        packages = [DEBUG, "libpython3.11-dbg", "libpython3.11-dev"]
        subprocess.run(
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], check=True
        )
    site = sysconfig.get_path("purelib")  # setuptools, Cython and msgpack, as pure Python
    env = {**os.environ, "PYTHONPATH": site, "GB_CFLAGS": "-O1 -g", "PYTHONDONTWRITEBYTECODE": "1"}
    env["MSGPACK_PUREPYTHON"] = "1"  # a release build's references are not counted
    build = [
        DEBUG,
        "setup.py",
        "-q",
        "build",
        "--build-lib",
        BUILD,
        "--build-temp",
        f"{BUILD}-temp",
    ]
    subprocess.run(list(map(str, build)), check=True, cwd=ROOT, env=env)
    env["PYTHONPATH"] = f"{BUILD}{os.pathsep}{site}"
    os.execvpe(DEBUG, [DEBUG, "-W", "error", str(Path(__file__).resolve()), *sys.argv[1:]], env)


def references() -> int:
    """All there are, but for those to Cython's coroutine types: each coroutine that Cython 3.3.1 makes leaves one
    to its type (`__Pyx_Coroutine_dealloc` frees the object, not the heap type's reference). No memory goes."""
    theirs = [vars(m).values() for name, m in sys.modules.items() if name.startswith("_cython_")]
    known = {id(t): sys.getrefcount(t) for room in theirs for t in room if isinstance(t, type)}
    return sys.gettotalrefcount() - sum(known.values())  # type: ignore[attr-defined,no-any-return]


def drift(call: Call) -> float:
    """References a call leaves; the least of up to four tries, for caches of the interpreter's fill too."""
    import gc

    least = float("inf")
    for _ in range(50):
        call()
    for _ in range(4):
        gc.collect()
        before = references()
        for _ in range(REPEATS):
            call()
        gc.collect()
        left = (references() - before) / REPEATS
        if abs(left) < abs(least):
            least = left
        if abs(least) < LIMIT:
            break
    return least


def in_a_child(work: Callable[[], str]) -> str:
    """What `work` says, in a process of its own; or how it ended."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(60)
        try:
            said = work()
        except BaseException as error:
            said = f"it failed: {error!r}"
        os.write(theirs, said.encode()[:60_000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return said if status == 0 else f"it ended with status {status} (signal {status & 127})"


def measured(which: Callable[[], dict[str, Call]], name: str) -> str:
    """What is wrong with a call; "" if nothing is."""
    calls = which()
    left = drift(calls[name])
    return "" if abs(left) < LIMIT else f"{left:+.3f} references a call"


def main() -> int:
    import gbcache

    assert Path(gbcache.__file__).is_relative_to(BUILD), gbcache.__file__
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    rooms: dict[str, Callable[[], dict[str, Call]]] = {"memoize": memoized, "Tiered": tiers}
    makers = {"Cache": lambda **o: gbcache.Cache("1MB", **o), "ObjectCache": gbcache.ObjectCache}
    bad = total = 0
    for title, make in makers.items():
        packed = title == "Cache"
        rooms |= {
            title: lambda make=make, packed=packed: plain(make, packed),
            f"{title} alone": lambda make=make, packed=packed: particular(make, packed),
            f"{title} flights": lambda make=make: flights(make),
        }
    for room, which in rooms.items():
        names = in_a_child(lambda which=which: "\n".join(KEPT.append(which()) or KEPT[0])).split(
            "\n"
        )
        for name in [n for n in names if wanted in f"{room}: {n}"]:
            said = in_a_child(lambda which=which, name=name: measured(which, name))
            total += 1
            bad += bool(said)
            if said:
                print(f"{room}: {name}: {said}", flush=True)
    print(f"drift: {total} calls, {REPEATS} times each: {bad or 'none'} drift")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    if not hasattr(sys, "gettotalrefcount"):
        bootstrap()
    sys.exit(main())
