"""The laws of the house, held by reading it: floors, names, headings, sizes, what may be included.

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
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

Tree = dict[str, str]
Rule = Callable[[Tree], list[str]]

ROOT = Path(__file__).parent.parent
_STORIES = (
    "base | list digest lock intent | arena | arena_check table wheel ring | index | head | tell keep | room | "
    "room_check store | chain | mend snap | pour image"
)
FLOORS = {room: n for n, rooms in enumerate(_STORIES.split("|")) for room in rooms.split()}
LIBRARY = {"stdbool.h", "stddef.h", "stdint.h", "string.h", "emmintrin.h", "arm_neon.h"}
LOCK_LIBRARY = {"pthread.h", "stdatomic.h", "sched.h", "errno.h"}
IMAGE = {"head", "entry", "timer", "extra", "extent", "bucket", "overflow", "chunk", "directory"}
IMAGE = {f"gb_{noun}" for noun in IMAGE | {"counters", "intent", "link", "ring_record"}}
HEADINGS = ["WHAT", "PICTURE", "INVARIANT", "COST", "NOT HERE"]
FREE_NAMES = {
    "csrc/head.h": re.compile(r"gb_(key|value)_len"),  # shapes of an entry, for store and chain
    "csrc/table.h": re.compile(r"gb_probe_\w+"),  # the candidates of a hash: a noun of its own
}
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

# --- reading ---------------------------------------------------------------------------------


def core(tree: Tree, suffix: str = ".c .h") -> Iterator[tuple[str, str, str]]:
    """(path, room, text) of the core's files, without gb.c."""
    for path, text in sorted(tree.items()):
        p = Path(path)
        if p.parent == Path("csrc") and p.suffix in suffix.split() and p.name != "gb.c":
            yield path, p.stem, text


def c_files(tree: Tree) -> Iterator[tuple[str, str]]:
    for path, text in sorted(tree.items()):
        if path.startswith(("csrc/", "gbcache/")) and path.endswith((".c", ".h")):
            yield path, text


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


@cache
def bare(text: str, strings: bool = False, directives: bool = True) -> str:
    """C without comments (and strings, and directives), every line where it was."""

    def less(m: re.Match[str]) -> str:
        token = m[0]
        if token.startswith("/"):
            return _blank(token)
        return token if strings else token[0] + _blank(token[1:-1]) + token[-1]

    token = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    text = re.sub(token, less, text, flags=re.S)
    if not directives:
        text = re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", lambda m: _blank(m[0]), text, flags=re.M)
    return text


class Piece(NamedTuple):
    """A declaration or definition at the top level of a C file."""

    head: str  # up to `;` or to a function's `{`; the inside of other braces is left out
    line: int
    lines: int
    defines: bool  # has a function's body

    @property
    def signature(self) -> tuple[str, str] | None:
        """(name, parameters), if it is a function's."""
        head = re.sub(r"__attribute__\s*\(\(.*?\)\)", " ", self.head, flags=re.S)
        if re.match(r"\s*(__extension__\s+)?typedef\b|\s*_Static_assert\b", head) or "=" in head:
            return None
        m = re.search(r"(\w+)\s*\((.*)\)\s*$", head, flags=re.S)
        return (m[1], m[2]) if m else None

    @property
    def static(self) -> bool:
        return bool(re.search(r"\b(static|GB_FETCHES)\b", self.head.split("(")[0]))


@cache
def pieces(text: str) -> list[Piece]:
    text = bare(text, directives=False)
    found, head, start, at = [], "", 0, 0
    while at < len(text):
        mark = text[at]
        if mark == "{":
            depth, end = 1, at + 1
            while depth and end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            at = end
            if not re.search(r"\)\s*$", head):
                head += "{}"
                continue
        elif mark != ";":
            start = start if head.strip() else at
            head += mark
            at += 1
            continue
        else:
            at += 1
        line = text.count("\n", 0, start) + 1
        found.append(Piece(head, line, text.count("\n", start, at) + 1, mark == "{"))
        head = ""
    return found


def functions(text: str) -> Iterator[tuple[Piece, str, str]]:
    for piece in pieces(text):
        if sign := piece.signature:
            yield piece, *sign


def includes(text: str) -> list[str]:
    """What stands behind each #include, without the quotes or brackets."""
    text = bare(text, strings=True)
    return [m[1].strip().strip('<>"') for m in re.finditer(r"^\s*#\s*include\b(.*)", text, re.M)]


# --- rules: the core -------------------------------------------------------------------------


def floors(tree: Tree) -> list[str]:
    """Law 6: includes point downward only; siblings never see each other."""
    bad = []
    for path, room, text in core(tree):
        if room not in FLOORS:
            bad.append(f"{path}: is on no floor")
            continue
        for name in includes(text):
            other = Path(name).stem
            if other not in FLOORS and f"csrc/{name}" not in tree:
                continue  # not of the house: `world` judges it
            own = path.endswith(".c") and name == f"{room}.h"
            if not own and (not name.endswith(".h") or FLOORS.get(other, 99) >= FLOORS[room]):
                bad.append(f"{path}: includes {name}, which is not below it")
    return bad


def one_unit(tree: Tree) -> list[str]:
    """gb.c is every .c of the core, once, in floor order."""
    path = "csrc/gb.c"
    if path not in tree:
        return [f"{path}: is missing"]
    got = [name for name in includes(tree[path]) if name.endswith(".c")]
    want = [Path(p).name for p, _, _ in core(tree, ".c")]
    bad = [f"{path}: lacks {name}" for name in want if name not in got]
    bad += [f"{path}: includes {name}, which is not there" for name in got if name not in want]
    bad += [f"{path}: includes {name} twice" for name in set(got) if got.count(name) > 1]
    order = [FLOORS.get(Path(name).stem, 99) for name in got]
    for i in range(1, len(order)):
        if order[i] < order[i - 1]:
            bad.append(f"{path}: {got[i]} comes after {got[i - 1]}, a higher floor")
    return bad


def no_function_pointers(tree: Tree) -> list[str]:
    """Law 2: no callback in the core."""
    bad = []
    # ( * name [..] (..) ) ( : a declarator, a cast, or a call through a pointer
    pointer = re.compile(
        r"(\w*)\s*\(\s*(\*[\s*]*(?:\w+\s+)*\w*\s*(?:\[[^\]]*\]\s*)*(?:\([^()]*\)\s*)?)\)\s*\("
    )
    for path, text in c_files(tree):
        if not path.startswith("csrc/"):
            continue
        for m in pointer.finditer(bare(text)):
            if m[1] not in ("if", "while", "switch", "sizeof"):
                bad.append(f"{path}: has a function pointer, ({m[2].strip()})(")
        for piece in pieces(text):
            plain = re.sub(r"\[[^\]]*\]|__attribute__\s*\(\(.*?\)\)", "", piece.head, flags=re.S)
            if re.match(r"\s*(__extension__\s+)?typedef\b[^(]*\w\s*\(", plain):
                bad.append(f"{path}: has a function type, {' '.join(plain.split())}")
        for _, name, parameters in functions(text):
            if re.search(r"\w\s*\(", re.sub(r"\[[^\]]*\]", "", parameters)):
                bad.append(f"{path}: {name} takes a function")
    return bad


def no_world(tree: Tree) -> list[str]:
    """Law 3: no I/O, clock, threads, malloc, Python in the core, but for the lock."""
    bad = []
    for path, text in c_files(tree):
        if not path.startswith("csrc/"):
            continue
        allowed = LIBRARY | (LOCK_LIBRARY if Path(path).stem == "lock" else set())
        for name in includes(text):
            house = f"csrc/{name}" in tree or (Path(name).stem in FLOORS and name.endswith(".h"))
            if not house and name not in allowed:
                bad.append(f"{path}: includes {name}, which is of the world")
    return bad


def _structs(tree: Tree) -> Iterator[tuple[str, str, str]]:
    for path, text in c_files(tree):
        plain = bare(text, directives=False) if path.startswith("csrc/") else ""
        for m in re.finditer(r"\b(?:struct|union)\s+(\w+)\s*\{", plain):
            depth, end = 1, m.end()
            while depth and end < len(plain):
                depth += {"{": 1, "}": -1}.get(plain[end], 0)
                end += 1
            yield path, m[1], plain[m.end() : end - 1]


def no_pointer_in_image(tree: Tree) -> list[str]:
    """Law 1: what lies in the image holds numbers only, and nothing that is not of the image."""
    macros: dict[str, str] = {}
    for path, text in c_files(tree):
        if path.startswith("csrc/"):
            define = r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:\([^)]*\))?((?:\\\n|[^\n])*)"
            macros.update({m[1]: m[2] for m in re.finditer(define, bare(text), re.M)})
    bad, seen = [], set()
    for path, name, body in _structs(tree):
        if name not in IMAGE and not re.fullmatch(r"gb_\w+_root", name):
            continue
        seen.add(name)
        body = re.sub(r"\[[^\]]*\]", "", body)
        body += "".join(macros.get(word, "") for word in re.findall(r"\w+", body))
        if "*" in body or re.search(r"\bu?intptr_t\b", body):
            bad.append(f"{path}: struct {name} lies in the image and has a pointer member")
        for other in re.findall(r"\b(?:struct|union)\s+(\w+)\s+\w", body):
            if other not in IMAGE and not re.fullmatch(r"gb_\w+_root", other):
                bad.append(f"{path}: struct {name} holds {other}, which is not of the image")
    return bad + [f"csrc: struct {name} is gone, this rule is blind" for name in IMAGE - seen]


def prefixes(tree: Tree) -> list[str]:
    """gb_wheel_due is in wheel.c, without exception."""
    bad = []
    for path, text in c_files(tree):
        room = Path(path).stem.lstrip("_")
        if path in ("csrc/base.h", "csrc/gb.c"):
            continue
        for piece, name, _ in functions(text):
            if path.endswith(".c") and piece.static:
                continue
            free = path in FREE_NAMES and FREE_NAMES[path].fullmatch(name)
            extension = piece.head.split("(")[0].startswith("PyMODINIT_FUNC")
            ours = name == f"gb_{room}" or name.startswith(f"gb_{room}_")
            if not (ours or free or extension):
                bad.append(f"{path}: {name} lacks the prefix gb_{room}_")
    return bad


def unique_statics(tree: Tree) -> list[str]:
    """One translation unit: a name is defined by one file."""
    where: dict[str, set[str]] = {}
    for path, _, text in core(tree):
        for piece, name, _ in functions(text):
            if piece.static or piece.defines:
                where.setdefault(name, set()).add(path)
    return [
        f"{sorted(paths)[0]}: {name} is defined in {' and '.join(sorted(paths))}"
        for name, paths in where.items()
        if len(paths) > 1
    ]


def _headings(text: str) -> dict[str, str]:
    """The headings of the comment that opens a header, in order, each with its text."""
    m = re.match(r"/\*.*?\*/", text, re.S)
    names = "|".join(HEADINGS)
    parts = re.split(rf"^ \* ({names})\b", m[0] if m else "", flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def headings(tree: Tree) -> list[str]:
    """Every header opens by saying what it is, and what it refuses to know."""
    bad = []
    for path, text in c_files(tree):
        if not path.endswith(".h"):
            continue
        found = _headings(text)
        if not text.startswith(f"/* {Path(path).name} - "):
            bad.append(f"{path}: does not open with its name and a sentence")
        if path.startswith("csrc/"):
            if list(found) != HEADINGS:
                bad.append(f"{path}: has the headings {list(found)}, not {HEADINGS}")
        elif "WHAT" not in found or not {"NOT HERE", "COST"} & set(found):
            bad.append(f"{path}: lacks WHAT, or both NOT HERE and COST")
        bad += [f"{path}: {h} says nothing" for h, said in found.items() if not said.strip(" *\n/")]
    return bad


def invariants(tree: Tree) -> list[str]:
    """Law 5: each numbered sentence of a header is one that its _check can report."""
    code = "\n".join(bare(text, strings=True) for _, _, text in core(tree))
    called = set(re.findall(r'"(\w+ \d+):', code))
    bad, stated = [], set()
    for path, room, text in core(tree, ".h"):
        section = _headings(text).get("INVARIANT", "")
        numbers = re.findall(r"(?:\A| \* {10}) (\d+) \S", section)
        if numbers != [str(n + 1) for n in range(len(numbers))]:
            bad.append(f"{path}: invariants are numbered {numbers}")
        stated |= {f"{room} {n}" for n in numbers}
        if not numbers:
            bad.append(f"{path}: has no numbered invariant")
        elif not re.search(rf"\bgb_{room}_check\s*\(", code):
            bad.append(f"{path}: has invariants and no gb_{room}_check")
        else:
            missing = [n for n in numbers if f"{room} {n}" not in called]
            bad += [f'{path}: nothing checks invariant {n}, no "{room} {n}:' for n in missing]
    for name in sorted(called - stated):
        bad.append(f"csrc/{name.split()[0]}.h: does not state the invariant {name} that is checked")
    return bad


# --- rules: the whole ------------------------------------------------------------------------


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
