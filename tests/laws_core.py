"""The laws of the core: floors, includes, names, headings, what may lie in the image. See `laws.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from laws_reading import Tree, bare, c_files, core, functions, includes, pieces

_STORIES = (
    "base | list digest lock intent | arena | arena_check table wheel ring | index | head | tell keep moment | room | "
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
