"""The suite under each Python the project supports: `make pythons`; a shorter form for CI: `make pythons-bounded`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = PROJECT["project"]["optional-dependencies"]
NEEDS = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(need for extra in ("disk", "valkey", "test") for need in EXTRAS[extra]),
]
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
# These have no part in the Python they run under.
SAME = ["--ignore=tests/test_native.py", "--ignore=tests/test_architecture.py"]
# What `bounded` runs: the binding and the interpreter, and no servers, damage or minutes of waiting.
QUICK = [
    f"tests/test_{name}.py"
    for name in (
        "cache",
        "object",
        "object_misbehaving",
        "mapping",
        "codec",
        "memoize",
        "flight",
        "flight_ends",
        "events",
        "persist",
        "hammer",
    )
]

nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["found", "tests"]  # `beside` runs `bounded` itself


def pyenv() -> None:
    """Puts pyenv's interpreters before its shims: a shim of a version that is not selected only fails."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = []
    for version in PYTHONS:
        has = sorted((root / "versions").glob(f"{version}.*/bin/python{version}"))
        found += [str(has[-1].parent)] if has else []
    os.environ["PATH"] = os.pathsep.join([*found, os.environ["PATH"]])


def here(version: str) -> bool:
    try:
        return not subprocess.run(
            [f"python{version}", "-c", "import venv"], capture_output=True
        ).returncode
    except FileNotFoundError:
        return False


pyenv()


@nox.session(python=False)
def found(session: nox.Session) -> None:
    """Says which interpreters are here, and fails if it is the own one alone: that would prove nothing new."""
    has = [version for version in PYTHONS if here(version)]
    session.log(
        f"here: {', '.join(has) or 'none'}; missing: {', '.join(sorted({*PYTHONS} - {*has})) or 'none'}"
    )
    if not {*has} - {OWN}:
        session.error(
            f"no Python but {OWN} on PATH or under pyenv: nothing that `make test` does not show"
        )


def suite(session: nox.Session, tests: list[str], place: str, **env: str) -> None:
    """Runs the tests on the extension that is built at that place."""
    pytest = Path(session.bin, "pytest")  # not -m: as in the Makefile
    session.run("python", str(pytest), *(session.posargs or tests), *SAME,
                env={"PYTHONPATH": place, **env})  # fmt: skip


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Every test."""
    session.install("-q", *NEEDS)
    temp = f"build/py{session.python}"  # in place: the modules' names tell one Python from another
    session.run("python", "setup.py", "-q", "build_ext", "--inplace", "--build-temp", temp,
                env={"GB_WERROR": "1"})  # fmt: skip
    suite(session, ["-n3", "--dist", "worksteal", "tests"], ".", GB_EXPECT="normal")


@nox.session(python=[version for version in PYTHONS if version != OWN])
def bounded(session: nox.Session) -> None:
    """The quick part, under the Pythons that `make test` does not run, built without optimization."""
    session.install("-q", *NEEDS)
    place = f"build/bounded-{session.python}"
    session.run("python", "setup.py", "-q", "build", "--build-base", f"{place}-base", "--build-lib", place,
                "--build-temp", f"{place}-temp",
                env={"GB_WERROR": "1", "GB_CFLAGS": "-O0 -g0", "GB_WRITTEN": f"{place}-temp"})  # fmt: skip
    suite(session, QUICK, place, GB_EXPECT=Path(place).name, GB_SLICE="short")


@nox.session(python=False)
def beside(session: nox.Session) -> None:
    """`bounded` of each Python that is here, all at once: alone a third of its time is waiting."""
    names = [f"bounded-{version}" for version in PYTHONS if version != OWN and here(version)]
    running = [
        subprocess.Popen([sys.executable, "-m", "nox", "-s", name], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name in names
    ]  # fmt: skip
    for child in running:
        print(child.communicate()[0], flush=True)
    failed = [name for name, child in zip(names, running, strict=True) if child.returncode]
    if failed:
        session.error(f"failed: {', '.join(failed)}")
