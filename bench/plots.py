"""The README's plots, drawn from `results/*.json` alone: ``python -m bench.plots``.

Each picture carries a digest of the data it was drawn from, so that `bench.readme` finds one that is out of date
without drawing it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import RESULTS, load

__all__ = ["PLOTS", "digest", "main", "stale"]

OURS, THEIRS, BOUND, BEST = (
    "#0072B2",
    "#8C8C8C",
    "#D55E00",
    "#009E73",
)  # Okabe and Ito's, and a grey
PEERS = {
    "cachebox.LRUCache": "cachebox",
    "lru-dict LRU": "lru-dict",
    "cachetools.LRUCache": "cachetools",
    "moka-py Moka": "moka-py",
    "theine Cache": "theine",
}
Data = dict[str, Any]


# --- what each shows --------------------------------------------------------------------------------


def speed_cache() -> Data:
    rows, panels = load("ops"), {}
    for title, what in (
        ("get, 1,000 hot keys", "get hit, 1000 hot keys / d.get"),
        ("get, 100,000 keys, zipf(1.0)", "get hit, 100,000 zipf(1.0) / d.get"),
        ("overwrite, 100,000 keys", "overwrite / cachebox.LRU"),
        ("insert + evict, 100,000 full", "insert + evict / cachebox.LRU"),
    ):
        row = rows[what]
        panel = {"gbcache.Cache": 1.0}
        if "dict_ns" in row:
            panel["dict"] = row["dict_ns"] / row["ns"]
        for peer, label in PEERS.items():
            one = rows[f"{what} > {peer}"]
            panel[label] = one.get("ns", one["got"]) / row["ns"]
        panels[title] = panel
    return panels


def speed_objects() -> Data:
    rows, panels = load("objects"), {}
    for title, what in (
        ("get, 100,000 keys, zipf(1.0)", "get, 100,000 zipf(1.0) / dict"),
        ("miss, 100,000 keys", "miss, 100,000 zipf(1.0) / dict"),
        ("overwrite, 100,000 keys", "overwrite / dict"),
        ("insert + evict, 100,000 full", "insert + evict, set + del of the oldest / dict"),
    ):
        row = rows[what]
        panels[title] = {
            "gbcache.ObjectCache": 1.0,
            "dict": row["dict_ns"] / row["ns"],
            **{label: rows[f"{what} > {peer}"]["ns"] / row["ns"] for peer, label in PEERS.items()},
        }
    return panels


def speed_memoize() -> Data:
    rows, what = load("memo"), "hit, one int / functools"
    ours = rows[what]["ns"]
    labels = {"cachebox.cached": "cachebox.cached", "moka_py.cached": "moka_py.cached",
              "cachetools.cached": "cachetools.cached", "theine.Memoize": "theine.Memoize"}  # fmt: skip
    return {
        "gbcache.memoize": 1.0,
        "functools.lru_cache": rows[what]["functools_ns"] / ours,
        **{label: rows[f"{what} > {name}"]["ns"] / ours for name, label in labels.items()},
    }


def memory() -> Data:
    rows, much = load("memory"), "an entry in all, 12 + 100 B, 1,000,000: "
    names = {"gbcache.Cache": "gbcache.Cache", "dict": "dict (no limit, no order)", **PEERS}
    return {label: rows[much + name]["got"] - 112 for name, label in names.items()}


def worst() -> Data:
    rows, what = load("latency"), "growth to 5,000,000: max"
    peers = ("dict", "cachebox", "lru-dict", "cachetools")
    found = {
        name: row["got"]
        for key, row in rows.items()
        for name in peers
        if key.endswith(f"> {name}: {what}")
    }
    return {"gbcache.Cache": rows[f"{what}, best of 5"]["got"] / 1e3,
            **{name: found[name] / 1e3 for name in peers}}  # fmt: skip


def hits() -> Data:
    panels: Data = {}
    for what, row in load("traces").items():
        if " at " in what and "optimum" in row:
            name, share = what.split(": ")[0].split(" at ")
            panels.setdefault(name, []).append(
                [float(share.rstrip("%")), row["hit_ratio"], row["optimum"], row["got"]]
            )
    if not panels:
        raise KeyError("optimum")
    return panels


def budget() -> Data:
    return {
        what.removeprefix("process growth, "): row["got"]
        for what, row in load("budget").items()
        if what.startswith("process growth")
    }


def restart() -> Data:
    """Of a million entries: opening, and what a cold start costs that reads them again, one by one."""
    files, far, server, n = load("persist"), load("tier"), load("valkey"), "1,000,000"
    read = far["zipf(0.9), 10x more data than memory: hit ratio of memory > a far read, median"]
    return {
        'open "r+", closed cleanly': files[f"open {n} clean, mode='r+', to the first hit"]["got"] / 1e3,
        'open "r", all verified': files[f"open {n}, mode='r', all verified"]["seconds"],
        'open "copy", all verified': files[f"open {n}, mode='copy', all verified"]["seconds"],
        'open "r+" after kill -9': files[f"recovery of {n} after kill -9"]["got"],
        "cold, each read from a Disk": read["got"],
        "cold, each read from Valkey": server["get_many of 1 to GET"]["us"],
    }  # fmt: skip


# --- how --------------------------------------------------------------------------------------------


def _bars(axes: Any, data: Data, say: Callable[[float], str], log: bool = False) -> None:
    names = list(data)[::-1]
    values = [data[name] for name in names]
    least = min(values)
    axes.barh(names, values, color=[OURS if _ours(name) else THEIRS for name in names], height=0.66,
              left=0 if not log else least / 3)  # fmt: skip
    if log:
        axes.set_xscale("log")
        axes.set_xlim(least / 3, max(values) * 12)
    else:
        axes.set_xlim(0, max(values) * 1.22)
    for at, value in enumerate(values):
        axes.annotate(say(value), (value + (least / 3 if log else 0), at), (4, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.xaxis.set_visible(False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _ours(name: str) -> bool:
    return name.startswith("gbcache")


def _times(value: float) -> str:
    return f"{value:.2f}x" if value < 3 else f"{value:.1f}x" if value < 10 else f"{value:.0f}x"


def _ratios(plt: Any, panels: Data) -> Any:
    figure, places = plt.subplots(1, len(panels), figsize=(10, 2.7), layout="constrained")
    for at, (axes, (title, data)) in enumerate(zip(places, panels.items(), strict=True)):
        whole = {"dict": 0.0, **data} if "dict" not in data else data
        order = {name: whole[name] for name in next(iter(panels.values()))}
        _bars(axes, order, lambda v: _times(v) if v else "")
        axes.set_title(title, fontsize=9, loc="left")
        if at:
            axes.set_yticklabels([])
    return figure


def draw_speed_cache(plt: Any, panels: Data) -> Any:
    figure = _ratios(plt, panels)
    figure.suptitle("Time of an operation, to gbcache.Cache's (shorter is faster)", fontsize=11)
    return figure


def draw_speed_objects(plt: Any, panels: Data) -> Any:
    figure = _ratios(plt, panels)
    figure.suptitle(
        "Time of an operation, to gbcache.ObjectCache's (shorter is faster)", fontsize=11
    )
    return figure


def _one(
    plt: Any,
    data: Data,
    title: str,
    say: Callable[[float], str],
    log: bool = False,
    tall: float = 2.4,
) -> Any:
    figure, axes = plt.subplots(figsize=(7, tall), layout="constrained")
    _bars(axes, data, say, log)
    axes.set_title(title, fontsize=11)
    return figure


def draw_speed_memoize(plt: Any, data: Data) -> Any:
    return _one(plt, data, "Time of a memoized call, a hit, to gbcache.memoize's", _times)


def draw_memory(plt: Any, data: Data) -> Any:
    title = "Bytes an entry beyond its key (12) and value (100), 1,000,000 entries, by RSS"
    return _one(plt, data, title, lambda v: f"{v:.0f} B", tall=2.7)


def _span(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f} ms" if seconds < 1 else f"{seconds:.0f} s"  # fmt: skip


def draw_worst(plt: Any, data: Data) -> Any:
    title = "The slowest single insert while growing from empty to 5,000,000 entries"
    return _one(plt, data, title, lambda v: f"{v:.1f} ms" if v < 10 else f"{v:.0f} ms")


def draw_hits(plt: Any, panels: Data) -> Any:
    figure, places = plt.subplots(
        2, 4, figsize=(10, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for axes, (name, points) in zip(places.flat, panels.items(), strict=False):
        x, lru, opt, unlike = zip(*points, strict=True)
        axes.fill_between(
            x, [100 * v for v in lru], [100 * v for v in opt], color=BEST, alpha=0.10, lw=0
        )
        axes.plot(
            x,
            [100 * v for v in opt],
            color=BEST,
            ls="--",
            lw=1.5,
            label="the optimum (Belady's MIN)",
        )
        axes.plot(x, [100 * v for v in lru], color=OURS, marker="o", ms=4, label="gbcache.Cache, and an exact LRU: the "
                  "same at every request" if not any(unlike) else "exact LRU")  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([0.1, 1, 10, 30], ["0.1", "1", "10", "30"])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
    for axes in places.flat[len(panels) :]:
        axes.set_visible(False)
    lines, labels = places.flat[0].get_legend_handles_labels()
    figure.supxlabel("entries the cache may hold, % of all keys of the trace", fontsize=10)
    figure.supylabel("hit ratio, %", fontsize=10)
    figure.legend(
        lines, labels, loc="upper center", ncol=2, frameon=False, bbox_to_anchor=(0.5, 1.06)
    )
    return figure


def draw_budget(plt: Any, data: Data) -> Any:
    title = "How far the process grew, filling a cache of 100 MB three times over (line: max_bytes)"
    figure = _one(
        plt, {f"gbcache, {name}": v for name, v in data.items()}, title, lambda v: f"{v:.2f} MB"
    )
    axes = figure.axes[0]
    axes.set_yticks(axes.get_yticks(), list(data)[::-1])
    axes.axvline(100, color=BOUND, lw=1.5)
    return figure


def draw_restart(plt: Any, data: Data) -> Any:
    named = {("" if name.startswith("cold") else "gbcache, ") + name: v for name, v in data.items()}
    figure = _one(
        plt, named, "A million entries back in memory (logarithmic)", _span, log=True, tall=2.6
    )
    axes = figure.axes[0]
    axes.set_yticks(axes.get_yticks(), list(data)[::-1])
    return figure


PLOTS: dict[str, tuple[Callable[[], Data], Callable[[Any, Data], Any]]] = {
    "speed-cache": (speed_cache, draw_speed_cache),
    "speed-objects": (speed_objects, draw_speed_objects),
    "speed-memoize": (speed_memoize, draw_speed_memoize),
    "memory": (memory, draw_memory),
    "worst": (worst, draw_worst),
    "hits": (hits, draw_hits),
    "budget": (budget, draw_budget),
    "restart": (restart, draw_restart),
}


def digest(data: Data) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def stale() -> list[str]:
    """Plots that are missing, or were drawn from other figures than are kept now."""
    out = []
    for name, (gather, _) in PLOTS.items():
        path = RESULTS / f"{name}.png"
        try:
            data = gather()
        except (KeyError, FileNotFoundError) as error:
            out.append(f"{path.name}: results/ has not what it shows: {error}")
            continue
        if not path.exists():
            out.append(f"{path.name}: not drawn")
        elif digest(data).encode() not in path.read_bytes():
            out.append(f"{path.name}: drawn from other figures than results/ has now")
    return out


def main() -> int:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.titlepad": 8, "figure.dpi": 100})
    left = 0
    for name, (gather, draw) in PLOTS.items():
        try:
            data = gather()
        except (KeyError, FileNotFoundError) as error:
            print(f"{name}.png: not drawn, results/ has not what it shows: {error}")
            left += 1
            continue
        figure = draw(plt, data)
        path = Path(RESULTS, f"{name}.png")
        figure.savefig(path, bbox_inches="tight", dpi=110,
                       metadata={"Software": None, "Comment": digest(data)})  # fmt: skip
        plt.close(figure)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
