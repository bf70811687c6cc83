"""Builds the extension modules: each Cython's file, a hand-written C-API part, and the core.

GB_CFLAGS and GB_LDFLAGS are appended; GB_TINY=1 builds with tiny constants and deep checks; GB_WERROR=1
makes every warning of ours an error; GB_WRITTEN is where Cython writes to, else beside its sources: two
builds at once must not share that.
"""

import os
import sysconfig
import threading
from collections import defaultdict
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
PYTHON_H = Path(sysconfig.get_path("include")) / "Python.h"
if not PYTHON_H.exists():
    raise SystemExit(
        f"gbcache: {PYTHON_H} is missing: install Python's headers (Debian: python3-dev)"
    )
SHARED = [
    "csrc/gb.c",
    "gbcache/_alone.c",
    "gbcache/_args.c",
    "gbcache/_clock.c",
    "gbcache/_event.c",
]
MODULES = {
    "_packed": [
        "_box.c",
        "_door.c",
        "_front.c",
        "_hot.c",
        "_load.c",
        "_many.c",
        "_news.c",
        "_pair.c",
        "_save.c",
        "_sealed.c",
        "_verbs.c",
        "_walk.c",
    ],
    "_object": [
        "_bound.c",
        "_bulk.c",
        "_memo.c",
        "_once.c",
        "_put.c",
        "_queue.c",
        "_quick.c",
        "_refs.c",
    ],
}
LEAN = {"_disk": ["_pages.c"]}  # with the core alone
# Python as it stands, compiled: half the time, and no signal's handler runs between two lines.
PURE = ["flight", "forks", "groups", "locks", "notify", "subscribers", "watch", "writes"]
HEADERS = sorted(
    str(p.relative_to(HERE)) for room in ("csrc", "gbcache") for p in (HERE / room).glob("*.[ch]")
    if p.stem not in {*MODULES, *LEAN, *PURE}
)  # fmt: skip
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes"]
# -g1: lines and functions, as in what a sanitizer shows; all of -g takes a quarter more time.
FLAGS = ["-std=c11", "-O3", "-g1", "-fvisibility=hidden", *os.environ.get("GB_CFLAGS", "").split()]
if os.environ.get("GB_TINY") == "1":
    FLAGS += ["-DGB_TINY", "-DGB_DEBUG=2"]
if os.environ.get("GB_WERROR") == "1":
    STRICT.append("-Werror")


class BuildExt(build_ext):
    """Modules side by side, what they share once; our own C is held to more warnings than what Cython writes."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        plain, locks, made = self.compiler._compile, defaultdict(threading.Lock), set()

        def compile_one(obj, src, suffix, cc_args, postargs, pp_opts):
            own = Path(src).stem not in {*MODULES, *LEAN, *PURE}
            with locks[obj]:
                if obj not in made:
                    args = [*postargs, *(STRICT if own else ["-w"])]
                    plain(obj, src, suffix, cc_args, args, pp_opts)
                    made.add(obj)

        self.compiler._compile = compile_one
        super().build_extensions()


def extension(name, source, more=(), **options):
    """With the flags of all: a sanitizer is to see each of them."""
    return Extension(
        f"gbcache.{name}",
        [f"gbcache/{source}", *more],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread", *os.environ.get("GB_LDFLAGS", "").split()],
        **options,
    )


extensions = [extension(name, f"{name}.py") for name in PURE] + [
    extension(
        name,
        f"{name}.pyx",
        [*(SHARED if name in MODULES else SHARED[:1]), *(f"gbcache/{s}" for s in sources)],
        include_dirs=["gbcache", "csrc"],
        depends=[*HEADERS, *(str(p.relative_to(HERE)) for p in HERE.glob("gbcache/*.pxi"))],
    )
    for name, sources in (MODULES | LEAN).items()
]
written = os.environ.get("GB_WRITTEN")
setup(ext_modules=cythonize(extensions, build_dir=written), cmdclass={"build_ext": BuildExt})
