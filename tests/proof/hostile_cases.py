"""The programs of `proof-hostile`, by name: each runs in an interpreter of its own, which may end in one way only."""

# ruff: noqa: E501
from __future__ import annotations

from pathlib import Path

GBCACHE = Path(__file__).resolve().parent.parent.parent / "gbcache"
MODULES = sorted(
    {p.stem for p in GBCACHE.glob("*.py*") if p.suffix in (".py", ".pyx")} - {"__init__", "__main__"}
)  # fmt: skip

USE = """
import gbcache, tempfile, threading, time, sys, atexit
def use(c):
    c["k"] = 1
    assert c["k"] == 1 == c.get_or_set("k", lambda: 2) and c.get("none") is None
    c.set("t", 5, ttl=50)
    told = []
    with c.subscribe(told.append, delivery="inline"):
        c["k"] = 2
    assert told, "nobody was told"
    c.check()
"""

# --- what is left behind when the interpreter ends: X, made by WHAT, left in PLACE ----------------

WHAT = {
    "Cache": "X = gbcache.Cache('1MB', ttl=5)",
    "ObjectCache": "X = gbcache.ObjectCache(50, ttl=5)",
    "memoize": "X = gbcache.memoize(maxsize=9, ttl=5)(lambda k: k)",
    "subscribers": "X = gbcache.Cache('1MB')\nX.many = [X.subscribe(lambda e: None), "
    "X.subscribe(lambda e, x=X: x.peek('k'), delivery='inline'), X.watch()]",
    "subscribed objects": "X = gbcache.ObjectCache(50)\nX.many = [X.subscribe(lambda e, x=X: x.peek('k')), X.watch()]",
    "live file": "X = gbcache.Cache('1MB', path=root + '/live.gbc', sync_interval=0.01)",
    "Disk": "X = gbcache.Disk(root + '/disk', sync='interval')",
    "Tiered": "X = gbcache.Tiered(gbcache.Cache('1MB'), gbcache.Disk(root + '/disk'), write='behind')",
}
TOUCH = """
def touch(x):
    try:
        if type(x).__name__ == 'Disk':
            x.put_many([("k", 1, None)])
            x.get_many(["k"])
        elif callable(x):
            assert x("k") == "k"
        else:
            x["k"] = 1
            x.get("k")
    except gbcache.ClosedError:  # closed at exit, and says so
        pass
"""
PLACE = {
    "a global": "",
    "a cycle": "cycle = [X]; cycle.append(cycle); del X, cycle",
    "a cycle of a global": "cycle = [X]; cycle.append(cycle)",
    "a class": "class Holds:\n    x = X\n    me = None\nHolds.me = Holds()\ndel X",
    "a thread-local": "local = threading.local(); local.x = X; del X",
    "the thread-local of a thread that lives": """
local = threading.local()
def stay(x):
    local.x = x
    touch(x)
    there.set()
    time.sleep(60)
there = threading.Event()
threading.Thread(target=stay, args=(X,), daemon=True).start()
there.wait()
del X""",
    "a suspended generator": """
def wait(x):
    try:
        yield x
    finally:
        touch(x)
g = wait(X)
next(g)
del X""",
    "a suspended coroutine": """
import types
@types.coroutine
def pause():
    yield
async def wait(x):
    try:
        await pause()
    finally:
        touch(x)
g = wait(X)
g.send(None)
del X""",
    "an atexit handler": "atexit.register(touch, X); del X",
    "an atexit handler of before": "",  # registered in BEFORE, runs after ours
    "__del__ of a global": """
class Last:
    def __init__(self, x): self.x = x
    def __del__(self, touch=touch): touch(self.x)
last = Last(X)
del X""",
    "__del__ in a cycle": """
class Last:
    def __init__(self, x): self.x, self.me = x, self
    def __del__(self, touch=touch): touch(self.x)
Last(X)
del X""",
    "weakref.finalize": "import weakref\nclass Seen: pass\nseen = Seen()\nweakref.finalize(seen, touch, X)\ndel X",
    "builtins and sys": "import builtins; builtins.kept = sys.kept = X; del X",
    "a value of its kind": "outer = gbcache.ObjectCache(5); outer['x'] = X; outer['me'] = outer; del X",
    "a traceback": """
def fails(x): 1 / 0
try: fails(X)
except ZeroDivisionError as error: kept = error
del X""",
    "a thread that goes on": """
def on(x):
    threading.main_thread().join()
    touch(x)
threading.Thread(target=on, args=(X,)).start()
del X""",
    "sys.exit in the middle": "touch(X); sys.exit(0)",
}  # fmt: skip
BEFORE = "import atexit\natexit.register(lambda: touch(X))\n"


def ends() -> dict[str, str]:
    """Each of WHAT left in each PLACE."""
    cases = {}
    for what, make in WHAT.items():
        for place, leave in PLACE.items():
            first = BEFORE if place == "an atexit handler of before" else ""
            cases[f"{what} in {place}"] = (
                f"{first}{USE}{TOUCH}root = sys.argv[1]\n{make}\ntouch(X)\n{leave}\n"
            )
    return cases


# --- imported again -------------------------------------------------------------------------------

OLD = f"""{USE}
import importlib, gbcache.{", gbcache.".join(MODULES)}
root = sys.argv[1]
old = [gbcache.Cache('1MB'), gbcache.ObjectCache(50), gbcache.Cache('1MB', path=root + '/live.gbc')]
tier = gbcache.Tiered(gbcache.Cache('1MB'), gbcache.Disk(root + '/disk'))
memoize = gbcache.memoize  # importing the module of this name anew puts it in its place
old_fn = memoize(maxsize=9)(lambda k: k)
heard = [c.subscribe(lambda e: None) for c in old]
for c in old: use(c)
def clear_error(call):
    try: call()
    except (ImportError, RuntimeError) as error: assert len(str(error)) > 10; print("refused:", error)
"""
STILL = """
for c in [*old, gbcache.Cache('1MB'), gbcache.ObjectCache(50), gbcache.Cache('1MB', path=root + '/new.gbc')]:
    use(c)
tier['k'] = 1
assert tier['k'] == 1 == old_fn(1) == memoize(maxsize=9)(lambda k: k)(1)
for c in old:
    c.close()
    try: c['k']
    except Exception as error: assert type(error).__name__ == 'ClosedError', error
    else: raise AssertionError('it is closed')
small = gbcache.Cache('100kB')
# by name: what C raises is the class of the first import, whatever Python has imported since
try: small['k'] = b'x' * 1_000_000
except ValueError as error: assert type(error).__name__ == 'BudgetError', error
small.close()
"""


def again() -> dict[str, str]:
    """Reload, import again, import within a thread."""
    cases = {
        f"reload of gbcache.{name}": f"{OLD}clear_error(lambda: importlib.reload(sys.modules['gbcache.{name}'])){STILL}"
        for name in MODULES
    }
    cases["reload of gbcache"] = f"{OLD}importlib.reload(gbcache){STILL}"
    cases["reload of everything, three times"] = (
        f"{OLD}\nfor m in 3 * [m for n, m in sorted(sys.modules.items()) if n.startswith('gbcache')]:\n"
        f"    clear_error(lambda: importlib.reload(m)){STILL}"
    )
    for name in MODULES:
        cases[f"gbcache.{name} anew"] = (
            f"{OLD}del sys.modules['gbcache.{name}']\nclear_error(lambda: importlib.import_module('gbcache.{name}')){STILL}"
        )
    cases["gbcache anew"] = f"{OLD}del sys.modules['gbcache']\nimport gbcache{STILL}"
    cases["all of it anew, three times"] = (
        f"{OLD}\nfor _ in range(3):\n    for name in [n for n in sys.modules if n.startswith('gbcache')]: del sys.modules[name]\n"
        f"    import gbcache, gbcache.disk{STILL}"
    )
    thread = "import threading, sys\nroot = sys.argv[1]\ndef first():\n    global gbcache\n    import gbcache\n"
    cases["imported first in a thread"] = (
        f"{thread}t = threading.Thread(target=first)\nt.start(); t.join()\n{OLD}{STILL}"
    )
    cases["imported first in a thread, used there at the end"] = (
        f"{thread}    threading.main_thread().join()\n    c = gbcache.Cache('1MB', path=root + '/l'); c['k'] = 1; c.close()\n"
        "threading.Thread(target=first).start()\n"
    )
    cases["imported by eight threads at once"] = (
        f"{thread}ts = [threading.Thread(target=first) for _ in range(8)]\n"
        f"for t in ts: t.start()\nfor t in ts: t.join()\n{OLD}{STILL}"
    )
    cases["imported at exit"] = (
        f"import atexit\ndef late():\n    {USE.strip().splitlines()[0]}\n    c = gbcache.Cache('1MB'); c['k'] = 1; c.check()\natexit.register(late)\n"
    )
    return cases


# --- sub-interpreters -----------------------------------------------------------------------------

REFUSAL = "in the main interpreter alone"
"""What gbcache/interpreter.py says; any other ImportError is a fault. The main interpreter is refused nothing."""

INSIDE = f"""{USE}
assert gbcache.Cache
for c in gbcache.Cache('1MB'), gbcache.ObjectCache(50): use(c)
kept = gbcache.ObjectCache(50)
"""
SUBS = f"""
import os, sys, threading
try:
    import _interpreters as subs
except ImportError:
    import _xxsubinterpreters as subs
kind, root, INSIDE = sys.argv[2], sys.argv[1], {INSIDE!r}
def create():
    if sys.version_info >= (3, 13): return subs.create(kind)
    return subs.create(isolated=kind == 'isolated')
def run(sub, more=''):
    code = "try:\\n    import gbcache\\nexcept ImportError as error:\\n    assert {REFUSAL!r} in str(error), error\\n" \\
        "    print('refused:', error, flush=True)\\nelse:\\n    exec(inside)\\n    print('works', flush=True)\\n"
    failed = subs.run_string(sub, 'inside = ' + repr(INSIDE + more) + '\\n' + code)
    assert failed is None, failed
"""
MAIN = f"{INSIDE}assert kept.closed is False\n"
SUBSCRIBED = "'kept.subscribe(lambda e: None)\\nkept[1] = 2\\n'"
SUB_CASES = {
    "in one alone": "s = create(); run(s); subs.destroy(s)",
    "in one, twice": "s = create(); run(s); run(s); subs.destroy(s)",
    "in one that is left": "s = create(); run(s)",
    "in one, subscribers left": f"s = create(); run(s, {SUBSCRIBED}); subs.destroy(s)",
    "in one that is left, subscribers left": f"s = create(); run(s, {SUBSCRIBED})",
    "in one, a live file left": "s = create(); run(s, f'live = gbcache.Cache(\"1MB\", path={root!r} + \"/l\")\\nlive[1] = 2\\n'); subs.destroy(s)",
    "main first": f"{MAIN}s = create(); run(s); subs.destroy(s)\nuse(kept)",
    "main first, the other left": f"{MAIN}s = create(); run(s)\nuse(kept)",
    "main after it": f"s = create(); run(s); subs.destroy(s)\nexec({MAIN!r}); print('works')",
    "main beside it": f"s = create(); run(s)\nexec({MAIN!r}); print('works')\nrun(s); subs.destroy(s)",
    "five in turn": "for _ in range(5): s = create(); run(s); subs.destroy(s)",
    "three at once": f"{MAIN}many = [create() for _ in range(3)]\nfor s in many: run(s)\nfor s in many: subs.destroy(s)\nuse(kept)",
    "in a thread": f"{MAIN}\ndef go():\n    s = create(); run(s); subs.destroy(s)\nt = threading.Thread(target=go); t.start(); t.join()\nuse(kept)",
    "beside a busy main": f"{MAIN}over = False\ndef busy():\n    while not over: use(kept)\nt = threading.Thread(target=busy); t.start()\n"
    "for _ in range(5): s = create(); run(s); subs.destroy(s)\nover = True; t.join()",
}  # fmt: skip


def subs() -> dict[str, str]:
    return {name: f"{SUBS}{code}\n" for name, code in SUB_CASES.items()}
