"""Rows with an aim, printed as they come and kept as JSON with the machine they came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.adapters import OUTSIDE, PEERS

__all__ = ["Report", "load"]

RESULTS = Path(__file__).parent / "results"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for peer in (*PEERS, *OUTSIDE):
        try:
            versions[peer.package] = importlib.metadata.version(peer.package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "peers": versions,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


class Report:
    """One bench's rows. `row` takes the figure and, where there is one, the aim it is held against."""

    def __init__(self, name: str, quick: bool) -> None:
        self.name, self.quick = name, quick
        self.rows: list[dict[str, Any]] = []
        print(f"\n== {name}{' (quick)' if quick else ''} ==")

    def row(self, what: str, got: float, unit: str = "", at_most: float | None = None,
            at_least: float | None = None, **more: Any) -> None:  # fmt: skip
        aim = (
            f"<= {at_most:g}"
            if at_most is not None
            else f">= {at_least:g}"
            if at_least is not None
            else ""
        )
        met = None
        if aim:
            met = got <= at_most if at_most is not None else got >= (at_least or 0)
        verdict = "" if met is None else "ok" if met else "NOT MET"
        extra = "  ".join(
            f"{k}={v:,.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in more.items()
        )
        print(f"{what:<52}{got:>12,.4g} {unit:<6}{aim:>10} {verdict:<8}{extra}", flush=True)
        self.rows.append({"what": what, "got": got, "unit": unit, "aim": aim, "met": met, **more})

    def save(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}{'-quick' if self.quick else ''}.json"
        path.write_text(json.dumps({"machine": machine(), "rows": self.rows}, indent=1) + "\n")


def load(name: str) -> dict[str, dict[str, Any]]:
    """The kept rows of a bench by what they say; one that belongs to the row above it as ``that > this``."""
    rows: dict[str, dict[str, Any]] = {}
    above = ""
    for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]:
        what = row["what"].strip()
        if row["what"].startswith(" "):
            what = f"{above} > {what}"
        else:
            above = what
        rows[what] = row
    return rows
