"""How the laws read the tree (path -> text): its C without comments, in pieces, and what these include."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

Tree = dict[str, str]
Rule = Callable[[Tree], list[str]]


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
