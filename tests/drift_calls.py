"""What `drift.py` calls: the verbs and error paths of a cache, and what only one of the two has."""

# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]


def raises(call: Call, *errors: type[BaseException]) -> Call:
    def expecting() -> None:
        try:
            call()
        except errors:
            return
        raise AssertionError("it did not raise")

    return expecting


def boom(*_: Any) -> Any:
    raise ZeroDivisionError


def interrupt() -> Any:
    raise KeyboardInterrupt


class Clock:
    now: Any = 1000.0

    def __call__(self) -> float:
        if self.now is None:
            boom()
        return self.now


class BadHash:
    __hash__ = boom  # type: ignore[assignment]


class BadEq:
    __eq__ = boom  # type: ignore[assignment]

    def __hash__(self) -> int:
        return 7


class BadFloat:
    __float__ = boom


class Value:
    pass


def plain(make: Callable[..., Any], packed: bool) -> dict[str, Call]:
    """The verbs. `a` is there, `n` is 5, `t` has a TTL; each call leaves it so."""
    from datetime import timedelta

    import gbcache

    clock = Clock()
    c = make(clock=clock)
    keep = [c, clock]
    value = ["value"] if packed else Value()
    c["a"], c["n"] = value, 5
    c.set("t", value, ttl=50)
    many = {f"k{i}": i for i in range(40)}
    other = make(clock=clock)
    other["x"] = 1
    closed = make()
    closed["x"] = 1
    closed.close()

    class Default(type(c)):  # type: ignore[misc]
        def __missing__(self, key: Any) -> Any:
            return key

    default = Default("1MB") if packed else Default()
    never = type(c).__new__(type(c))
    E, K, T, V = Exception, KeyError, TypeError, ValueError
    Z, Closed = ZeroDivisionError, gbcache.ClosedError

    def at(now: Any, *calls: Call) -> None:
        before, clock.now = clock.now, now
        try:
            for call in calls:
                call()
        finally:
            clock.now = before

    def expired(key: str, *calls: Call) -> None:
        c.set(key, value, ttl=1)
        at(1005.0, *calls)
        c.pop(key, None)

    return {
        "get": lambda: (c.get("a"), c.get("none"), c.get("none", value), c.get(key="a", default=1)),
        "[]": lambda: (c["a"], c["t"]), "[] missing": raises(lambda: c["none"], K),
        "__missing__": lambda: default["x"], "peek": lambda: (c.peek("a"), c.peek("none", 5)),
        "in, len, bool": lambda: ("a" in c, "none" in c, len(c), bool(c)),
        "iterate": lambda: (list(c), list(c.keys()), list(c.values()), list(c.items())),
        "iterate halfway": lambda: next(iter(c.items())), "==": lambda: (c == {"a": 1}, c == other, c != 5),
        "views": lambda: (("a", 1) in c.items(), 1 in c.values(), c.keys() & {"a"}, len(c.items())),
        "get_many": lambda: (c.get_many(["a", "t", "none"] * 20), c.get_many(iter("ab")), c.get_many([])),
        "set": lambda: (c.set("a", value), c.set(key="a", value=value, ttl=None), c.__setitem__("a", value)),
        "set ttl": lambda: (c.set("t", value, ttl=5), c.set("t", value, ttl=timedelta(1)), c.set("t", value, ttl=50.5)),
        "set other shapes": lambda: (c.set("s", 1), c.set("s", 1, ttl=5), c.set("s", "x" * 99), c.pop("s")),
        "add": lambda: (c.add("a", 1), c.add("new", value, ttl=5), c.pop("new")),
        "set_many": lambda: (c.set_many(many, ttl=5), c.set_many(list(many.items())), c.delete_many(many)),
        "update": lambda: (c.update(many), c.update([("k", 1)], z=1), c.delete_many([*many, "k", "z"])),
        "delete_many": lambda: c.delete_many(["none", 1.5]), "del": lambda: (c.set("d", value), c.__delitem__("d")),
        "del missing": raises(lambda: c.__delitem__("none"), K), "pop": lambda: (c.set("p", value), c.pop("p"), c.pop("p", value)),
        "pop missing": raises(lambda: c.pop("none"), K), "setdefault": lambda: (c.setdefault("a", 1), c.setdefault("s", value), c.pop("s")),
        "popitem": lambda: (other.popitem(), other.set("x", value)),
        "popitem of nothing": raises(lambda: default.popitem(), K),
        "popitem over a dead one": raises(lambda: (default.clear(), default.set("x", value, ttl=0.001), __import__("time").sleep(0.002), default.popitem()), K),
        "incr": lambda: (c.incr("n", 10**6), c.incr("n", delta=-(10**6)), c.incr("i", 1, initial=7), c.pop("i")),
        "incr of no int": raises(lambda: c.incr("a"), T), "incr by no int": raises(lambda: c.incr("n", 1.5), T),
        "touch": lambda: (c.touch("t", ttl=60), c.touch("none"), c.touch("a", ttl=5), c.touch("a", ttl=None)),
        "ttl, entry": lambda: (c.ttl("t"), c.ttl("a"), c.entry("t"), c.entry("a")),
        "ttl missing": raises(lambda: c.ttl("none"), K), "entry missing": raises(lambda: c.entry("none"), K),
        "figures": lambda: (c.stats(), c.stats().hit_ratio, c.memory(), str(c.memory()), repr(c), c.max_entries, c.used_bytes, c.closed),
        "check, expire": lambda: (c.check(), c.expire()), "clear": lambda: (other.clear(), other.set("x", 1)),
        "resize": lambda: (other.resize("900kB"), other.resize("1MB")) if packed else (other.resize(5), other.resize(500)),
        "evict": lambda: (other.resize("1MB", max_entries=3) if packed else other.resize(3), other.set_many(many), other.resize("1MB", max_entries=99) if packed else other.resize(99)),
        "due: get": lambda: expired("e", lambda: c.get("e")), "due: pop": lambda: expired("e", lambda: c.pop("e", 1)),
        "due: set": lambda: expired("e", lambda: c.set("e", 2)), "due: add": lambda: expired("e", lambda: c.add("e", 2, ttl=5)),
        "due: incr": lambda: expired("e", lambda: c.incr("e")), "due: expire": lambda: expired("e", c.expire),
        "due: delete_many": lambda: expired("e", lambda: c.delete_many(["e"])), "due: walk": lambda: expired("e", lambda: list(c.items())),
        "due: setdefault": lambda: expired("e", lambda: c.setdefault("e", 3)), "due: get_many": lambda: expired("e", lambda: c.get_many(["e", "a"])),
        "no hash": lambda: [raises(f, T)() for f in (lambda: c[[]], lambda: c.set({}, 1), lambda: c.pop([], 1), lambda: c.touch([]), lambda: c.get_many([[]]), lambda: c.incr([]), lambda: [] in c, lambda: c.delete_many([[]]))],
        "bad hash": lambda: [raises(f, E)() for f in (lambda: c[BadHash()], lambda: c.set(BadHash(), 1), lambda: c.add(BadHash(), 1), lambda: c.get_many(["a", BadHash()]))],
        "bad arguments": lambda: [raises(f, T)() for f in (lambda: c.get(), lambda: c.set(1), lambda: c.set(1, 2, 3, 4), lambda: c.set("a", 1, tll=1), lambda: c.get("a", key="a"), lambda: c.set_many(5), lambda: c.get_many(5), lambda: c.delete_many(5), lambda: c.resize("x", 1, 2))],
        "bad pairs": raises(lambda: c.set_many([("a", value), (1, 2, 3)]), V),
        "bad ttl": lambda: [raises(lambda t=t: c.set("a", value, ttl=t), V, T, Z)() for t in (0, -1, "1", float("nan"), True, 10**400, BadFloat(), [1])],
        "bad clock": raises(lambda: at(None, lambda: c.get("a")), Z), "clock of text": raises(lambda: at("x", lambda: c.set("a", 1)), T),
        "no time": raises(lambda: at(float("nan"), lambda: c.popitem()), V), "bad clock, walk": raises(lambda: at(None, lambda: list(c)), Z),
        "no copy": lambda: [raises(f, T)() for f in (c.copy, lambda: __import__("pickle").dumps(c), lambda: __import__("copy").copy(c))],
        "make, fill, close": lambda: (m := make(ttl=5, clock=clock), m.set_many(many), m.close()),
        "make, fill, forget": lambda: make(clock=clock).set_many(many), "make a cycle": lambda: (m := make(), m.__dict__.update(me=m)),
        "with": lambda: make().__enter__().__exit__(None, None, None),
        "bad options": lambda: [raises(lambda o=o: make(**o), V, T)() for o in ({"ttl": 0}, {"jitter": 5}, {"clock": 5}, {"max_entries": 0}, {"idle": -1}, {"ttl": BadFloat})],
        "a clock that fails at once": raises(lambda: make(clock=boom), Z), "again": raises(lambda: c.__init__("1MB") if packed else c.__init__(), RuntimeError),
        "closed": lambda: [raises(f, Closed)() for f in (lambda: closed["x"], lambda: closed.set("x", 1), lambda: list(closed), closed.popitem, closed.stats, lambda: closed.get_many(["x"]), closed.clear, lambda: closed.get_or_set("x", boom))],
        "never initialised": lambda: [raises(f, Closed)() for f in (lambda: never["x"], lambda: never.set("x", 1), lambda: list(never), never.popitem, never.check)],
        "new alone": lambda: type(c).__new__(type(c)), "keep": lambda: keep,
    }  # fmt: skip


def particular(make: Callable[..., Any], packed: bool) -> dict[str, Call]:
    """What only one of the two has."""
    import gbcache

    if packed:
        switch: dict[str, Any] = {"encode": list, "decode": list}

        class Codec:
            encode = staticmethod(lambda v: switch["encode"](v))
            decode = staticmethod(lambda b: switch["decode"](b))

        switch["encode"], switch["decode"] = lambda v: b"coded", lambda b: [b]
        c = make(codec=Codec())
        c["o"], c["long"], c["p"] = [1], b"x" * 200_000, [2]

        def failing(which: str, call: Call) -> None:
            before, switch[which] = switch[which], boom
            try:
                raises(call, ZeroDivisionError)()
            finally:
                switch[which] = before

        d = make()
        keys = ["x", "\xfc", b"b", 1, 2**70, 1.5, None, True, (1, ("x", None))]
        return {
            "keys of all types": lambda: [(d.set(k, 1), d.get(k), d.get_many([k]), list(d), d.pop(k)) for k in keys],
            "values of all types": lambda: [(d.set("v", v), d["v"]) for v in (*keys[:8], [1], {"a": (1,)}, {1}, "\u20ac" * 99)],
            "long values": lambda: (c["long"], c.set("long", b"y" * 200_000), c.get_many(["long"])),
            "codec": lambda: (c["o"], c.set("o", [1])), "codec: encode fails": lambda: failing("encode", lambda: c.set("o", [1])),
            "codec: decode fails": lambda: failing("decode", lambda: c["o"]), "codec: items": lambda: failing("decode", lambda: list(c.items())),
            "codec: get_many fails": lambda: failing("decode", lambda: c.get_many(["o", "p", "long"])),
            "codec: encodes to no bytes": lambda: (switch.update(encode=lambda v: 5), raises(lambda: c.set("o", [1]), TypeError)(), switch.update(encode=lambda v: b"coded")),
            "too long": lambda: [raises(f, ValueError)() for f in (lambda: d.set("k" * 5000, 1), lambda: d.incr("k" * 5000), lambda: d.set(float("nan"), 1))],
            "too big": raises(lambda: d.set("k", b"x" * 2_000_000), gbcache.BudgetError), "odd value": raises(lambda: d.set("k", object()), TypeError),
            "incr too far": raises(lambda: (d.set("n", 2**63 - 1), d.incr("n")), OverflowError),
        }  # fmt: skip
    said: list[Any] = [1]
    w = make(max_weight=10, weigh=lambda k, v: boom() if said[0] is boom else said[0])

    def saying(what: Any, call: Call) -> None:
        said[0] = what
        try:
            raises(call, ZeroDivisionError, TypeError, ValueError, gbcache.BudgetError)()
        finally:
            said[0] = 1

    o = make()
    o[BadEq()] = 1
    odd = float("nan")
    return {
        "weigh": lambda: (w.set("a", 1), w.set("a", 2, ttl=5), w.incr("n"), w.entry("a"), w.set_many(enumerate(range(30)))),
        "weigh fails": lambda: [saying(s, lambda: w.set("a", 1)) for s in (boom, -1, 1.5, 99, 2**70)],
        "weigh fails incr": lambda: (w.pop("n", None), saying(boom, lambda: w.incr("n"))),
        "== fails": lambda: [raises(f, ZeroDivisionError)() for f in (lambda: o[BadEq()], lambda: o.set(BadEq(), 1), lambda: o.pop(BadEq()), lambda: BadEq() in o, lambda: o.touch(BadEq()), lambda: o.incr(BadEq()), lambda: o.get_many([BadEq()]), lambda: o.delete_many([BadEq()]), lambda: o.ttl(BadEq()))],
        "cycle through it": lambda: (m := make(), m.set("me", m), m.set(Value(), iter(m))), "nan": lambda: (o.set(odd, 1), o[odd], o.pop(odd)),
        "resize": raises(lambda: o.resize(max_weight=5), TypeError), "big ints": lambda: (o.set("n", 2**80), o.incr("n", 2**90), o.pop("n")),
    }  # fmt: skip
