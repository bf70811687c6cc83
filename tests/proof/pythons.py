"""The Pythons of this machine, and gbcache built for each, in an environment of its own under build/."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
NEEDS = ["setuptools>=77", "wheel", "Cython>=3.1", "msgpack", "lmdb"]
_SHOW = (
    "import sys, sysconfig; "
    "print('%d.%d' % sys.version_info[:2], sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
)


def _says(python: str) -> str:
    """The version of an interpreter that runs, and has a GIL; else empty."""
    ran = subprocess.run([python, "-c", _SHOW], capture_output=True, text=True, check=False)
    version, _, free = ran.stdout.partition(" ")
    return version if ran.returncode == 0 and free.strip() == "0" else ""


def found() -> dict[str, str]:
    """One interpreter for each version there is: on the PATH, or pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    known = [path for v in SUPPORTED if (path := shutil.which(f"python{v}"))]
    known += [str(path) for path in sorted(pyenv.glob("*/bin/python"))]
    pythons: dict[str, str] = {}
    for path in known:
        version = _says(path)
        if version in SUPPORTED:
            pythons.setdefault(version, path)
    return dict(sorted(pythons.items()))


def _newest() -> float:
    rooms = [
        *ROOT.glob("csrc/*.[ch]"),
        *ROOT.glob("gbcache/*.p*"),
        *ROOT.glob("gbcache/_*.[ch]"),
        ROOT / "setup.py",
    ]
    return max(
        p.stat().st_mtime for p in rooms if p.name not in ("_packed.c", "_object.c", "_disk.c")
    )


def built(version: str, python: str, flags: str = "") -> tuple[str, str]:
    """Of a version: an interpreter that has what gbcache needs, and the directory gbcache is in, built for it."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "pythons.lock").open(
        "w"
    ) as lock:  # one at a time: they build in one tree
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _built(version, python, flags)


def _built(version: str, python: str, flags: str) -> tuple[str, str]:
    home = ROOT / "build" / f"py{version}{'-' + flags.strip('-') if flags else ''}"
    own, site, made = home / "venv" / "bin" / "python", home / "site", home / "made"
    if not own.exists():
        subprocess.run([python, "-m", "venv", home / "venv"], check=True)
        subprocess.run([own, "-m", "pip", "install", "-q", *NEEDS], check=True)
    if not made.exists() or made.stat().st_mtime < _newest():
        shutil.rmtree(site, ignore_errors=True)
        env = {**os.environ, "GB_CFLAGS": flags} if flags else dict(os.environ)
        build = [
            own,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-build-isolation",
            "--no-deps",
            "--target",
            site,
            ".",
        ]
        subprocess.run(build, check=True, cwd=ROOT, env=env)
        made.touch()
    return str(own), str(site)
