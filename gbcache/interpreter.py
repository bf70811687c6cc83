"""Only the main interpreter may load what follows: the threads that look after caches outlive a sub-interpreter, and
CPython ends the whole process when one ends before its threads do. Imported before anything else of ours."""

from __future__ import annotations

import importlib
import sys

__all__: list[str] = []


def _is_main() -> bool:
    """Where the module that makes sub-interpreters is not there, nor are they."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    try:
        subs = importlib.import_module(name)
    except ImportError:
        return True
    return bool(subs.get_current() == subs.get_main())


if not _is_main():
    raise ImportError(
        "gbcache works in the main interpreter alone, and this is a sub-interpreter: "
        "use processes or threads (under mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
    )
