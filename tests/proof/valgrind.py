"""Valgrind's memcheck: the native tests without sanitizers, and tests of the binding under a system's Python.

Of the native tests every report is a failure. Under Python a report counts if a frame of it lies in one of our
extension modules (or in the planted one): the interpreter's own are not ours. Each run of this file first shows that
a use after free, a read of bytes nobody wrote and a leak are found, in a program and in a shared object of Python's.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import said

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "tests" / "native"
BUILD = ROOT / "build" / "valgrind"
MEMCHECK = ["valgrind", "-q", "--fair-sched=yes", "--leak-check=full", "--show-leak-kinds=definite",
            "--errors-for-leak-kinds=definite"]  # fmt: skip
SLICE = [
    "test_cache.py",
    "test_object.py",
    "test_persist.py",
    "test_persist_live.py",
    "test_disk.py",
    "test_pair.py",
]
MORE = ["test_memoize.py", "test_object_misbehaving.py", "test_events_subscribers.py"]
"""With --all; and then the C tests are run in the normal build too, and test_oom, which runs through each allocation."""
LEFT_OUT = {"test_max_bytes": "fills a disk: a minute", "full_of_what": "as long", "fork": "as slow, and forks are proof-fork's",
            "twice_as_deep": "uses tracemalloc, which leaks its own records"}  # fmt: skip
PLANT = """
#include <stdlib.h>
void *volatile kept;
int planted(int what) {
    volatile char *bytes = malloc(40);
    kept = (void *)bytes;
    if (what == 0) { free((void *)bytes); return bytes[3]; }
    if (what == 1) { if (bytes[3]) what = 7; free((void *)bytes); return what == 9; }
    kept = 0;
    return 0;
}
#ifdef ALONE
int main(int argc, char **argv) { (void)argv; planted(argc - 1); return 0; }
#endif
"""


def native(name: str, more: list[str], folder: Path, seed: int) -> str:
    """What memcheck says of a native test; empty if nothing."""
    program = str(folder / f"{name}{''.join(more)}")
    source = str(NATIVE / f"{name}.c")
    subprocess.run(["gcc", "-std=c11", "-O1", "-g1", *more, f"-I{ROOT / 'csrc'}", f"-I{NATIVE}", source,
                    "-lpthread", "-o", program], check=True)  # fmt: skip
    ran = subprocess.run([*MEMCHECK, "--error-exitcode=9", program, str(seed)], capture_output=True,
                         text=True, timeout=900, check=False)  # fmt: skip
    return "" if ran.returncode == 0 else f"{program}: exit {ran.returncode}\n{ran.stdout[-500:]}{ran.stderr}"  # fmt: skip


def ours(log: Path) -> list[str]:
    """The reports of a run that have a frame of ours."""
    reports = []
    for error in ElementTree.parse(log).iter("error"):
        frames = [f"{f.findtext('fn')} ({f.findtext('obj')})" for f in error.iter("frame")]
        if any(said.OURS.search(frame) or "planted" in frame for frame in frames):
            reports.append("\n  ".join([error.findtext("kind") or "?", *frames]))
    return reports


def under_python(
    python: str, arguments: list[str], folder: Path
) -> tuple[int, str, list[str], int]:
    """The exit status of a Python under memcheck, what it said, our reports, and how many there were in all."""
    log = folder / "log.xml"
    env = {**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": f"{BUILD}:{sysconfig.get_path('purelib')}",
           "GB_SLICE": "short", "GB_EXPECT": BUILD.name, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    ran = subprocess.run(
        [*MEMCHECK, "--undef-value-errors=no", "--child-silent-after-fork=yes", "--xml=yes", f"--xml-file={log}", python, *arguments],
        env=env, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    reports = len(list(ElementTree.parse(log).iter("error")))
    return ran.returncode, ran.stdout[-3000:] + ran.stderr[-3000:], ours(log), reports


def planted(python: str, folder: Path) -> None:
    source, library = folder / "planted.c", folder / "planted.so"
    source.write_text(PLANT)
    subprocess.run(["gcc", "-g", "-shared", "-fPIC", source, "-o", library], check=True)
    subprocess.run(["gcc", "-g", "-DALONE", source, "-o", folder / "alone"], check=True)
    seen = [
        subprocess.run([*MEMCHECK, "--error-exitcode=9", folder / "alone", *["x"] * what],
                       capture_output=True, check=False).returncode == 9
        for what in range(3)
    ]  # fmt: skip
    for what in (0, 2):
        call = f"import ctypes; ctypes.CDLL({str(library)!r}).planted({what})"
        seen.append(len(under_python(python, ["-c", call], folder)[2]) == 1)
    said.row("planted use after free, unwritten byte, leak", f"{sum(seen)} of 5 seen", all(seen))


def natives(options: argparse.Namespace, folder: Path) -> None:
    begun = time.monotonic()
    runs: list[tuple[str, list[str]]] = []
    for path in sorted(NATIVE.glob("test_*.c")):
        if options.all or path.stem != "test_oom":
            runs.append((path.stem, ["-DGB_TINY"]))
        if options.all:
            runs.append((path.stem, []))
    with ThreadPoolExecutor(options.jobs) as pool:
        told = list(pool.map(lambda run: native(*run, folder, options.seed), runs))
    bad = [one for one in told if one]
    print(*bad, sep="\n")
    if bad:
        said.kept("valgrind-native").write_text("\n".join(bad))
    left = (
        "" if options.all else " of the tiny build; left to --all: test_oom, and the normal build"
    )
    said.row("memcheck, native tests", f"{len(runs)} programs{left}; {len(bad)} with reports, "
             f"{time.monotonic() - begun:.0f} s, seed {options.seed}", not bad)  # fmt: skip


def binding(python: str, more: list[str], folder: Path) -> None:
    """Tests of each class under memcheck, with the extension built for this Python."""
    begun = time.monotonic()
    env = {**os.environ, "GB_CFLAGS": "-O1", "PYTHONPATH": sysconfig.get_path("purelib")}
    subprocess.run([python, "setup.py", "-q", "build", "--build-lib", BUILD, "--build-base", f"{BUILD}-base",
                    "--build-temp", f"{BUILD}-temp"], check=True, cwd=ROOT, env=env)  # fmt: skip
    tests = [str(ROOT / "tests" / name) for name in [*SLICE, *more]]
    wanted = " and ".join(f"not {name}" for name in LEFT_OUT)
    status, text, reports, all_of_them = under_python(
        python,
        ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", wanted, *tests],
        folder,
    )
    if reports or status:
        case = said.kept("valgrind-binding")
        case.write_text("\n\n".join([*reports, text]))
        print(f"kept in {case}", *reports[:5], text, sep="\n")
    passed = text.strip().splitlines()[-1:] or [""]
    said.row("memcheck, binding", f"{len(reports)} reports with a frame of ours ({all_of_them} in all), pytest {status} "
             f"{passed[0][:60]}, {time.monotonic() - begun:.0f} s", not reports and status == 0)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="twice as much")
    parser.add_argument("--only", default="", help="planted, native or binding")
    parser.add_argument("--python", default="/usr/bin/python3", help="a system's, for the binding")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in ("", "planted"):
            planted(options.python, folder)
        if options.only in ("", "native"):
            natives(options, folder)
        if options.only in ("", "binding"):
            binding(options.python, MORE if options.all else [], folder)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
