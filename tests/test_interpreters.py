"""A sub-interpreter is refused, in a sentence, before anything of ours is loaded in it; the process lives on."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

NAME = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
pytestmark = pytest.mark.skipif(not importlib.util.find_spec(NAME), reason="no sub-interpreters")
PROGRAM = f"""
import sys, {NAME} as subs
inside = '''
try:
    import gbcache
except ImportError as error:
    print("refused:", error, flush=True)
else:
    kept = gbcache.ObjectCache(5, ttl=5)
    kept.subscribe(print)
    print("works", flush=True)
'''
sub = subs.create({{kind}}) if sys.version_info >= (3, 13) else subs.create(isolated={{kind}} == "isolated")
assert subs.run_string(sub, inside) is None
{{then}}
import gbcache
cache = gbcache.Cache("1MB")
cache["k"] = 1
cache.check()
print("main works")
"""


@pytest.mark.parametrize("then", ["subs.destroy(sub)", "pass"])
@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_a_sub_interpreter_is_refused_and_the_main_one_works(kind: str, then: str) -> None:
    program = PROGRAM.replace("{kind}", repr(kind)).replace("{then}", then)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    told = ran.stdout.splitlines()
    assert told[0].startswith("refused: gbcache works in the main interpreter alone")
    assert told[1:] == ["main works"]
