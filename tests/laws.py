"""The laws of the house, held by reading it: of the core (`laws_core.py`), and here of the whole.

Each rule is a function from a tree (path -> text) to sentences `path: what is wrong`.
`test_architecture.py` runs them.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from laws_core import (
    floors,
    headings,
    invariants,
    no_function_pointers,
    no_pointer_in_image,
    no_world,
    one_unit,
    prefixes,
    unique_statics,
)
from laws_reading import Rule, Tree, bare, c_files, functions

ROOT = Path(__file__).parent.parent
FILE_LINES = 450
FUNCTION_LINES = 60
# In pieces, because this file is committed too.
SECRETS = ["/" + top + "/" for top in ("work", "root", "opt")]
SECRETS += [
    "files." + "pythonhosted",
    "pypi.org" + "/simple",
    "farm" + "-bench",
    "farm" + "-studio",
]


def file_sizes(tree: Tree) -> list[str]:
    bad = []
    for path, text in sorted(tree.items()):
        counted = path.startswith(("csrc/", "gbcache/")) and path.endswith(
            (".py", ".pyx", ".c", ".h")
        )
        if counted and len(text.splitlines()) > FILE_LINES:
            bad.append(f"{path}: has {len(text.splitlines())} lines, more than {FILE_LINES}")
    return bad


def function_sizes(tree: Tree) -> list[str]:
    bad = []
    for path, text in c_files(tree):
        if bare(text, directives=False).count("{") != bare(text, directives=False).count("}"):
            bad.append(f"{path}: its braces do not balance, no rule can read it")
        for piece, name, _ in functions(text):
            if piece.defines and piece.lines > FUNCTION_LINES:
                bad.append(f"{path}: {name} has {piece.lines} lines, more than {FUNCTION_LINES}")
    return bad


def exports(tree: Tree) -> list[str]:
    """Every module says what it offers."""
    bad = []
    for path, text in sorted(tree.items()):
        p = Path(path)
        if p.parts[0] != "gbcache" or p.suffix != ".py" or p.name == "__main__.py":
            continue
        if "data" in p.parts:
            continue
        names = [
            name.id
            for node in ast.parse(text).body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            for name in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(name, ast.Name)
        ]
        if "__all__" not in names:
            bad.append(f"{path}: has no __all__")
    return bad


IMPORT = """
import sys
before = set(sys.modules)
import gbcache
for name in sorted(set(sys.modules) - before):
    print(name.partition(".")[0])
"""


def light_import(tree: Tree) -> list[str]:
    """`import gbcache` in a fresh process brings in the standard library and itself, no more."""
    spec = importlib.util.find_spec("gbcache")
    assert spec and spec.submodule_search_locations
    with tempfile.TemporaryDirectory() as place:
        for path, text in tree.items():
            if path.startswith("gbcache/") and path.endswith(".py"):
                target = Path(place, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
        for built in Path(spec.submodule_search_locations[0]).glob("_*.so"):
            shutil.copy(built, Path(place, "gbcache"))
        inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([place, *inherited])}
        ran = subprocess.run(
            [sys.executable, "-c", IMPORT], cwd=place, env=env, capture_output=True, text=True
        )
    if ran.returncode:
        return [f"gbcache: cannot be imported: {ran.stderr[-500:]}"]
    # CPython's own too, though its list leaves out what its tests began.
    known = {*sys.stdlib_module_names, "gbcache", "_xxsubinterpreters"}
    strange = set(ran.stdout.split()) - known
    # What Cython's own modules register under is no package that anybody installed.
    strange = {name for name in strange if not re.fullmatch(r"_?cython_\w+", name)}
    return [f"gbcache: its import brings in {name}" for name in sorted(strange)]


def nothing_private(tree: Tree) -> list[str]:
    """No path of a machine, no registry's host, no tool of the workshop is committed."""
    return [
        f"{path}: line {n} contains {word}"
        for path, text in sorted(tree.items())
        for n, line in enumerate(text.splitlines(), 1)
        for word in SECRETS
        if word in line.lower()
    ]


def _compiled(tree: Tree) -> set[str]:
    pure = re.findall(r"\w+", re.search(r"PURE = \[(.*?)\]", tree["setup.py"])[1])  # type: ignore[index]
    return {f"gbcache/{name}.py" for name in pure}


def locks_given_back(tree: Tree) -> list[str]:
    """In Python by those of `locks` alone; in what is compiled by acquire, try and finally. See `locks`."""
    return [
        f"{path}: {found}: one of gbcache/locks.py"
        for path, text in sorted(tree.items())
        if path.startswith("gbcache/") and path.endswith((".py", ".pyx"))
        for found in re.findall(
            r"threading\.(?:Event|Condition|Timer|\w*Semaphore|Barrier)\(", text
        )
        + ([] if path in _compiled(tree) else re.findall(r"threading\.R?Lock\(", text))
    ]


def without_the_gil(tree: Tree) -> list[str]:
    """What is compiled says that it needs none: else its import switches it on, for the whole process."""
    return [
        f"{path}: lacks freethreading_compatible=True"
        for path, text in sorted(tree.items())
        if path in _compiled(tree) or (path.startswith("gbcache/") and path.endswith(".pyx"))
        if not re.search(r"^# cython:.*freethreading_compatible=True", text, re.M)
    ]


def flags_for_all(tree: Tree) -> list[str]:
    """One function makes an extension, with the flags of all: a sanitizer would not see one made without."""
    made = re.findall(r"\n.*\bExtension\([^)]*", tree["setup.py"])
    odd = [each for each in made if "extra_compile_args=FLAGS" not in each]
    return [f"setup.py: {each.strip()[:40]}: lacks extra_compile_args=FLAGS" for each in odd]


THREADS = ["behind", "dispatch", "engine", "housekeeper", "live", "lmdbstore", "tracking"]


def no_generator(tree: Tree) -> list[str]:
    """None in what threads of ours, or each cache's making, run: each makes a function, and where there is no memory
    for one, CPython 3.12 and 3.13 let go of its code twice."""
    return [
        f"{path}: line {node.lineno}: a generator expression or a lambda: a list, a partial"
        for path in (f"gbcache/{room}.py" for room in THREADS)
        for node in ast.walk(ast.parse(tree[path]))
        if isinstance(node, ast.GeneratorExp | ast.Lambda) and node.col_offset
    ]


def no_with(tree: Tree) -> list[str]:
    """None in what Cython compiles: where memory is short, its `with` hands a traceback on that is not there."""
    compiled = _compiled(tree)
    return [
        f"{path}: {line.strip()}: acquire, try, finally"
        for path, text in sorted(tree.items())
        if path in compiled or (path.startswith("gbcache/") and path.endswith((".pyx", ".pxi")))
        for line in re.findall(r"^ *(?:async )?with (?!nogil|gil|cython\.).*:", text, re.M)
    ]


def no_list_comprehension(tree: Tree) -> list[str]:
    """None in Cython's own files: where the list cannot grow, 3.3 lets go of the element twice."""
    return [
        f"{path}: {line.strip()}: append, in a loop"
        for path, text in sorted(tree.items())
        if path.startswith("gbcache/") and path.endswith((".pyx", ".pxi"))
        for line in re.findall(r"^.*\[[^]\n]*\sfor .*", text, re.M)
    ]


RULES: list[Rule] = [
    no_with,
    locks_given_back,
    flags_for_all,
    without_the_gil,
    no_generator,
    no_list_comprehension,
    floors,
    one_unit,
    no_function_pointers,
    no_world,
    no_pointer_in_image,
    prefixes,
    unique_statics,
    headings,
    invariants,
    file_sizes,
    function_sizes,
    exports,
    light_import,
    nothing_private,
]
